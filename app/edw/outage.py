"""Outages of a service: what could not be done is repeated, and the log says so now and then, not each time."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import structlog

from edw.backoff import Backoff
from edw.errors import Missing, ServiceError, Throttled, Unavailable
from edw.stop import Stop

FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0
LONGEST_REPEAT = 60.0
"""Seconds between two attempts at what may be done each time without an answer, however healthy the service looks."""
RETRY_AFTER_MOST = 60.0
"""Seconds of a service's Retry-After that are heeded: a wrong one must not silence a program for a day."""
LOG_EVERY = 30.0
QUIET = 1.0

T = TypeVar("T")
log = structlog.get_logger("edw")


class Outage:
    """What all users of one service know of its state.

    It is on from the second failure of a call until an answer at least `QUIET` seconds after the last failure:
    a service that throttles answers some requests and not others. `create` makes a queue or table that is
    missing; without it, that it is missing is the service's answer.
    """

    def __init__(
        self,
        service: str,
        stop: Stop,
        create: Callable[[], Awaitable[object]] | None = None,
        on_throttled: Callable[[], None] = lambda: None,
    ) -> None:
        self._service = service
        self._create = create
        self._stop = stop
        self._on_throttled = on_throttled
        self._down_since: float | None = None
        self._last_failure = 0.0
        self._not_before = 0.0
        """When the service wants to be asked again, whatever for."""
        self._logged: dict[str, float] = {}
        """When a failure of each kind was last logged."""

    @property
    def is_on(self) -> bool:
        return self._down_since is not None

    async def ride_out(
        self,
        call: Callable[[], Awaitable[T]],
        until: Callable[[], float] = lambda: math.inf,
        probe: Callable[[], Awaitable[object]] | None = None,
        despite_stop: bool = False,
    ) -> T:
        """The result of `call`, repeated while the service is unavailable.

        What does harm when it is repeated in vain is repeated only after `probe` found the service well, and less
        and less often. Raises the last Unavailable once the program is asked to stop, unless `despite_stop`, or
        when the next attempt would begin after `until`, which may change in the meantime and is in seconds of the
        monotonic clock. Other errors are the service's answer and raised at once.
        """
        waits, repeats = Backoff(FIRST_WAIT, LONGEST_WAIT), Backoff(FIRST_WAIT, LONGEST_REPEAT)
        attempts = 0
        while True:
            is_early = time.monotonic() < self._not_before
            if is_early and not await self._pause(self._not_before, until, despite_stop):
                raise Throttled("the service wants to be asked later", kind="RetryAfter", is_refusal=True)
            is_probing = bool(attempts and probe)
            try:
                if is_probing and probe:
                    await probe()
                    is_probing = False
                result = await call()
            except Unavailable as error:
                if isinstance(error, Missing) and not self._create:
                    raise
                attempts += 1
                # One failure is no outage: a connection that the other side closed while it was idle.
                if attempts > 1 or error.retry_after:
                    self._failed(error)
                if isinstance(error, Throttled):
                    self._on_throttled()
                if isinstance(error, Missing) and self._create:  # deleted meanwhile, or an emulator that forgot it
                    with suppress(ServiceError):
                        await self._create()
                wait = (repeats if probe and not is_probing else waits).next()
                if not await self._pause(time.monotonic() + wait, until, despite_stop):
                    raise
            except ServiceError:
                self._answered()
                raise
            else:
                self._answered()
                return result

    async def over(self, call: Callable[[], Awaitable[object]]) -> None:
        """Returns when no outage is on, which it finds out with `call`, or when the program is asked to stop.

        Raises Unavailable when it is asked to stop in the midst of an outage.
        """
        while self.is_on and not self._stop.is_set():
            await self.ride_out(call)
            await self._stop.sleep(QUIET / 2)

    async def _pause(self, resume: float, until: Callable[[], float], despite_stop: bool) -> bool:
        """Waits until it is time to `resume`; whether another attempt may begin then."""
        sleep = asyncio.sleep if despite_stop else self._stop.sleep
        while (despite_stop or not self._stop.is_set()) and time.monotonic() < min(resume, until()):
            await sleep(min(resume, until()) - time.monotonic())
        return (despite_stop or not self._stop.is_set()) and time.monotonic() < until()

    def _failed(self, error: Unavailable) -> None:
        now = self._last_failure = time.monotonic()
        self._not_before = max(self._not_before, now + min(error.retry_after, RETRY_AFTER_MOST))
        if self._down_since is None:
            self._down_since = now
        if now >= self._logged.get(error.kind, -math.inf) + LOG_EVERY:
            log.warning("service unavailable, trying again", service=self._service, error=str(error))
            self._logged[error.kind] = now

    def _answered(self) -> None:
        now = time.monotonic()
        if self._down_since is None or now - self._last_failure < QUIET:
            return
        if max(self._logged.values()) >= self._down_since:
            log.info("service available again", service=self._service, seconds=round(now - self._down_since, 1))
        self._down_since = None
