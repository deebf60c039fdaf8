"""Outages of a service: what could not be done is repeated, and the log says once that it is down and up."""

import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from edw.backoff import Backoff
from edw.errors import ServiceError, Unavailable
from edw.stop import Stop

FIRST_WAIT, LONGEST_WAIT = 0.1, 30.0
LOG_EVERY = 30.0

T = TypeVar("T")
log = structlog.get_logger("edw")


class Outage:
    """What all users of one service know of its state."""

    def __init__(self, service: str, stop: Stop) -> None:
        self._service = service
        self._stop = stop
        self._down_since: float | None = None
        self._next_log = 0.0

    @property
    def is_on(self) -> bool:
        return self._down_since is not None

    async def ride_out(self, call: Callable[[], Awaitable[T]], until: float = math.inf) -> T:
        """The result of `call`, repeated while the service is unavailable.

        Raises the last Unavailable once the program is to stop, or when the next attempt would begin after
        `until`, in seconds of the monotonic clock. Other errors are the service's answer and raised at once.
        """
        waits = Backoff(FIRST_WAIT, LONGEST_WAIT)
        attempts = 0
        while True:
            try:
                result = await call()
            except Unavailable as error:
                attempts += 1
                wait = waits.next()
                # One failure is no outage: a connection that the other side closed while it was idle.
                if attempts > 1:
                    self._failed(error)
                if self._stop.is_set() or time.monotonic() + wait > until:
                    raise
                await self._stop.sleep(wait)
            except ServiceError:
                self._answered()
                raise
            else:
                self._answered()
                return result

    def _failed(self, error: Unavailable) -> None:
        now = time.monotonic()
        if self._down_since is None:
            self._down_since = now
            self._next_log = now
        if now >= self._next_log:
            log.warning("service unavailable, trying again", service=self._service, error=str(error))
            self._next_log = now + LOG_EVERY

    def _answered(self) -> None:
        if self._down_since is not None:
            seconds = round(time.monotonic() - self._down_since, 1)
            log.info("service available again", service=self._service, seconds=seconds)
            self._down_since = None
