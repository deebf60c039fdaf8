"""The work on one message: handle it, store its entity or poison it, delete it; every write under its lease."""

import asyncio
import math
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import structlog

from edw import entity, handling, message, poison
from edw.errors import ContentRefused, LeaseLost, ServiceError, Unavailable
from edw.handling import Handler
from edw.keeper import Keeper
from edw.limit import Limit
from edw.message import Unprocessable
from edw.outage import Outage
from edw.queue import Delivery, Queue
from edw.settings import ConsumerSettings
from edw.stop import Stop
from edw.table import Table
from edw.tally import Tally

RETRY_LONGEST = 60
"""Seconds a message waits at most before it is delivered again after a failure of its own."""

T = TypeVar("T")
log = structlog.get_logger("edw")


class OutcomeUnknown(Exception):
    """Raised when an insert had no answer: it may be done, be under way still, or never be."""


class Worker:
    """Works on any number of messages at once, one for each call of `work`."""

    def __init__(
        self,
        settings: ConsumerSettings,
        queue: Queue,
        poison_queue: Queue,
        table: Table,
        handle: Handler,
        stop: Stop,
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._poison_queue = poison_queue
        self._table = table
        self._stop = stop
        self._handle = handling.asynchronous(handle, settings.concurrency)
        self.limit = Limit(settings.concurrency)
        self.queue_outage = Outage("queue", stop, queue.create, self.limit.shrink)
        self.poison_outage = Outage("poison queue", stop, poison_queue.create, self.limit.shrink)
        self.table_outage = Outage("table", stop, table.create, self.limit.shrink)
        self.tally = Tally()
        # The service may go on for as long again with what is given up here.
        self._write_takes = 2 * request_timeout(settings)
        self.keeper = Keeper(queue, self.queue_outage, settings.visibility_timeout, self.tally)

    async def work(self, delivery: Delivery) -> None:
        """Everything that is to be done for a message; its lease must be held, and is let go of."""
        try:
            try:
                await self._store_or_poison(delivery)
            finally:
                await self.keeper.let_go(delivery)
            # Last, so that a crash at any instant before leaves the message to be delivered again.
            await self._fenced(delivery, self.queue_outage, partial(self._queue.delete, delivery))
            log.debug("message done", message_id=delivery.message_id, dequeue_count=delivery.dequeue_count)
        except LeaseLost as error:
            self.tally.lease_lost += 1
            log.debug("lease lost, left to its next consumer", message_id=delivery.message_id, error=str(error))
        except OutcomeUnknown as error:
            log.debug("insert without an answer", message_id=delivery.message_id, error=str(error))
            # Not at once: what may still be done must not meet the next delivery's insert.
            await self._release(delivery, math.ceil(self._write_takes))
        except (Unavailable, asyncio.CancelledError):  # and asked to stop, or the lease is about to end
            await self._release(delivery)
        except Exception as error:
            again_in = min(2**delivery.dequeue_count, RETRY_LONGEST)
            self._failed(delivery, error, again_in=again_in)
            await self._release(delivery, again_in)

    async def _store_or_poison(self, delivery: Delivery) -> None:
        try:
            await self._store(delivery)
        except (LeaseLost, Unavailable, OutcomeUnknown):
            raise
        except (Unprocessable, ContentRefused) as error:
            await self._poison(delivery, str(error))
        except Exception as error:
            if delivery.dequeue_count < self._settings.max_dequeue_count:
                raise
            self._failed(delivery, error)
            await self._poison(delivery, f"failed at delivery {delivery.dequeue_count}: {_named(error)}")

    async def _store(self, delivery: Delivery) -> None:
        if delivery.dequeue_count > 1 and await self._is_stored(delivery):
            self.tally.already_stored += 1
            return
        content = message.decode(delivery.content, self._settings.message_encoding)
        parsed = message.parse(delivery.message_id, content)
        if delivery.dequeue_count > self._settings.max_dequeue_count:
            raise Unprocessable(f"delivered {delivery.dequeue_count} times without success")
        async with delivery.lease.lasting():
            result = await self._handle(parsed)
        now = datetime.now(UTC)
        seconds = self._processing_time(parsed, now)
        if await self._insert(delivery, entity.build(parsed, now, seconds, result or {})):
            self.tally.add_stored(seconds)
            self.limit.grow()
        else:
            self.tally.already_stored += 1

    def _processing_time(self, parsed: message.Message, now: datetime) -> float:
        seconds = (now - parsed.sent_at).total_seconds()
        if seconds >= 0:
            return seconds
        self.tally.clock_behind += 1
        if self.tally.clock_behind == 1:
            log.warning("clock behind the producer's, processing times of 0 stored", seconds=-seconds)
        return 0.0

    async def _is_stored(self, delivery: Delivery) -> bool:
        return await self._fenced(delivery, self.table_outage, partial(self._table.keep_one, delivery.message_id))

    async def _insert(self, delivery: Delivery, row: dict[str, object]) -> bool:
        is_unknown = False

        async def insert() -> bool:
            nonlocal is_unknown
            was_unknown, is_unknown = is_unknown, True
            try:
                return await self._table.insert(row)
            except Unavailable as error:
                is_unknown = was_unknown or not error.is_refusal
                raise

        try:
            return await self._fenced(delivery, self.table_outage, insert)
        except (Unavailable, asyncio.CancelledError) as error:
            if is_unknown:
                raise OutcomeUnknown(str(error) or "cut off by a stop") from None
            raise
        finally:
            # A process can be frozen between fence and request, and its insert meet that of the next delivery.
            if is_late := delivery.lease.remaining() < 0:
                await self._stop.sleep(self._write_takes / 2)  # the service may take its time over it
            if is_late or delivery.dequeue_count > 1:
                keep_one = partial(self._table.keep_one, delivery.message_id)
                await self.table_outage.ride_out(keep_one, despite_stop=True)

    async def _poison(self, delivery: Delivery, reason: str) -> None:
        # Stored there before it is deleted here: a crash between the two doubles rather than loses.
        content = poison.envelope(delivery, reason, consumer=socket.gethostname())
        send = partial(self._poison_queue.send, content, time_to_live=-1)
        # Each attempt without an answer may be another copy.
        await self._fenced(delivery, self.poison_outage, send, probe=self._poison_queue.probe)
        self.tally.poisoned += 1
        log.warning(
            "message sent to the poison queue", message_id=delivery.message_id, reason=reason[: poison.REASON_MOST]
        )

    async def _fenced(
        self,
        delivery: Delivery,
        outage: Outage,
        call: Callable[[], Awaitable[T]],
        probe: Callable[[], Awaitable[object]] | None = None,
    ) -> T:
        """The result of `call`, begun only while the lease outlasts it. Raises LeaseLost."""
        if delivery.lease.remaining() < self._write_takes:
            raise LeaseLost("the lease could end before the request does")

        def until() -> float:
            return delivery.lease.ends - self._write_takes

        return await outage.ride_out(call, until, probe, despite_stop=True)

    def _failed(self, delivery: Delivery, error: Exception, **fields: object) -> None:
        self.tally.failed += 1
        log.error(
            "message failed",
            message_id=delivery.message_id,
            dequeue_count=delivery.dequeue_count,
            error=_named(error),
            # A refused request needs no traceback, a fault of the program does.
            exc_info=None if isinstance(error, ServiceError) else error,
            **fields,
        )

    async def give_back(self, delivery: Delivery) -> None:
        """Makes a message that is not worked on visible again at once."""
        await self.keeper.let_go(delivery)
        await self._release(delivery)

    async def _release(self, delivery: Delivery, after: int = 0) -> None:
        """Gives the message back for another delivery; where that fails, its lease ends by itself."""
        release = partial(self._queue.release, delivery, after)
        try:
            await self.queue_outage.ride_out(release, until=lambda: delivery.lease.ends, despite_stop=True)
            self.tally.released += 1
        except ServiceError as error:
            log.debug("message not given back", message_id=delivery.message_id, error=str(error))


def request_timeout(settings: ConsumerSettings) -> float:
    """Seconds one request may take: short enough for several attempts within the lease."""
    return min(10.0, settings.visibility_timeout / 6)


def _named(error: Exception) -> str:
    try:
        return str(error) if isinstance(error, ServiceError) else f"{type(error).__name__}: {error}"
    except Exception:  # of an error's own making
        return type(error).__name__
