"""Keeps the leases of the messages in work: renews each in time before it ends."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import structlog

from edw.errors import LeaseLost, ServiceError
from edw.outage import Outage
from edw.queue import Delivery, Queue
from edw.tally import Tally

STOOD_STILL = 2.0
"""Seconds of delay that are worth a warning."""

log = structlog.get_logger("edw")


class Keeper:
    """One for all messages of a consumer: what is done within half of its lease costs nothing here."""

    def __init__(self, queue: Queue, outage: Outage, visibility_timeout: int, tally: Tally) -> None:
        self._queue = queue
        self._outage = outage
        self._visibility_timeout = visibility_timeout
        self._tally = tally
        self._held: set[Delivery] = set()
        self._renewals: dict[Delivery, asyncio.Task[None]] = {}

    def hold(self, delivery: Delivery) -> None:
        """From now on the lease is renewed, for as long as the queue does it."""
        self._held.add(delivery)

    async def let_go(self, delivery: Delivery) -> None:
        """From now on the lease stays as it is: its pop receipt is the newest."""
        self._held.discard(delivery)
        if renewal := self._renewals.get(delivery):
            await asyncio.wait([renewal], timeout=self._visibility_timeout / 6)
            renewal.cancel()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """A block in which leases are renewed."""
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        while True:
            due = time.monotonic() + self._visibility_timeout / 10
            await asyncio.sleep(self._visibility_timeout / 10)
            if (late := time.monotonic() - due) > STOOD_STILL:
                log.warning(
                    "event loop stood still, no lease could be renewed",
                    seconds=round(late, 1),
                    hint="a handler that blocks must be def, not async def",
                )
            for delivery in self._held - self._renewals.keys():
                if delivery.lease.remaining() < 0.6 * self._visibility_timeout:
                    self._renewals[delivery] = asyncio.create_task(self._renew(delivery))

    async def _renew(self, delivery: Delivery) -> None:
        renew = partial(self._queue.renew, delivery, self._visibility_timeout)
        try:
            await self._outage.ride_out(renew, until=lambda: delivery.lease.ends, despite_stop=True)
            self._tally.renewed += 1
        except LeaseLost:
            # An earlier renewal without an answer was done after all: its pop receipt is the valid one, and
            # nobody here knows it. Nobody else has the message until the lease ends, so work may go on until then.
            self._held.discard(delivery)
        except ServiceError as error:
            log.debug("lease not renewed", message_id=delivery.message_id, error=str(error))
        finally:
            del self._renewals[delivery]
