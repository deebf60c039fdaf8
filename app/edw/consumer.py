"""The consumer: receive under a lease, store one entity per message, delete."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import structlog

from edw import entity, health, message, poison, program, progress
from edw.backoff import Backoff
from edw.errors import ContentRefused, LeaseLost, ServiceError, Unavailable
from edw.message import Unprocessable
from edw.outage import Outage
from edw.queue import PAGE_MOST, Delivery, Queue
from edw.settings import ConsumerSettings
from edw.stop import Stop, on_signals
from edw.storage import Storage
from edw.table import Table
from edw.tally import Tally

RETRY_LONGEST = 60
"""Seconds a message waits at most before it is delivered again after a failure of its own."""

T = TypeVar("T")
log = structlog.get_logger("edw")


class Consumer:
    """Works on up to `concurrency` messages at once, each under its own lease."""

    def __init__(self, settings: ConsumerSettings, queue: Queue, poison_queue: Queue, table: Table, stop: Stop) -> None:
        self._settings = settings
        self._queue = queue
        self._poison_queue = poison_queue
        self._table = table
        self._stop = stop
        self._queue_outage = Outage("queue", stop, queue.create)
        self._poison_outage = Outage("poison queue", stop, poison_queue.create)
        self._table_outage = Outage("table", stop, table.create)
        self._idle = Backoff(settings.poll_interval_min, settings.poll_interval_max)
        # Half of the concurrency at a time: the other half keeps working while a page is fetched.
        self._page = max(1, min(PAGE_MOST, settings.concurrency // 2))
        self._in_flight = 0
        self._room_made = asyncio.Event()
        self._polled = False
        self.tally = Tally()

    @property
    def is_ready(self) -> bool:
        """Whether the services answered when they were last asked."""
        return self._polled and not (self._queue_outage.is_on or self._table_outage.is_on)

    async def prepare(self) -> None:
        """Creates what is missing of queue, poison queue and table. Raises Unavailable when stopped before.

        What the identity may not create is taken to be there; if it is not, the first request says so.
        """
        await self._queue_outage.ride_out(self._queue.create)
        await self._poison_outage.ride_out(self._poison_queue.create)
        await self._table_outage.ride_out(self._table.create)

    async def run(self) -> None:
        """Receives until told to stop, or until there is nothing left if the settings say drain."""
        async with asyncio.TaskGroup() as workers:
            while not self._stop.is_set():
                room = await self._room()
                was_busy = self._in_flight > 0
                try:
                    # Nothing new while the table is down: each delivery counts against its message.
                    await self._table_outage.over(partial(self._table.holds, ""))
                    if self._stop.is_set():
                        break
                    page = await self._queue_outage.ride_out(
                        partial(self._queue.receive, room, self._settings.visibility_timeout)
                    )
                except Unavailable:  # and asked to stop
                    break
                self._polled = True
                self.tally.received += len(page)
                if self._stop.is_set():
                    await asyncio.gather(*map(self._release, page))
                    break
                for delivery in page:
                    self._in_flight += 1
                    workers.create_task(self._work(delivery))
                if page:
                    self._idle.reset()
                elif self._settings.drain and not was_busy:
                    break
                if len(page) < room:
                    await self._stop.sleep(self._idle.next())

    async def _room(self) -> int:
        """How many messages to fetch: never more than can be started at once.

        Waits until there is room for a page, because fuller pages are fewer requests; but where slow messages
        hold the room, no longer than a poll interval if there is room at all.
        """
        while self._free() < self._page:
            self._room_made.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._room_made.wait(), self._settings.poll_interval_min)
            if self._free():
                break
        return min(self._free(), PAGE_MOST)

    def _free(self) -> int:
        return self._settings.concurrency - self._in_flight

    async def _work(self, delivery: Delivery) -> None:
        try:
            try:
                await self._store(delivery)
            except (Unprocessable, ContentRefused) as error:
                await self._poison(delivery, str(error))
            # Last, so that a crash at any instant before leaves the message to be delivered again.
            await self._fenced(delivery, self._queue_outage, partial(self._queue.delete, delivery))
            log.debug("message done", message_id=delivery.message_id, dequeue_count=delivery.dequeue_count)
        except LeaseLost as error:
            self.tally.lease_lost += 1
            log.debug("lease lost, left to its next consumer", message_id=delivery.message_id, error=str(error))
        except Unavailable as error:
            # Not given back: what had no answer may still be done, and must not meet the next delivery's insert.
            self.tally.left_to_lease += 1
            log.debug("message left to its lease", message_id=delivery.message_id, error=str(error))
        except Exception as error:
            # A refused request needs no traceback, a fault of the program does.
            is_fault = not isinstance(error, ServiceError)
            log.error("message failed", message_id=delivery.message_id, error=str(error), exc_info=is_fault)
            await self._release(delivery, min(2**delivery.dequeue_count, RETRY_LONGEST))
        finally:
            self._in_flight -= 1
            if self._free() >= self._page:
                self._room_made.set()

    async def _store(self, delivery: Delivery) -> None:
        if delivery.dequeue_count > 1 and await self._is_stored(delivery):
            self.tally.already_stored += 1
            return
        parsed = message.parse(message.decode(delivery.content, self._settings.message_encoding))
        if delivery.dequeue_count > self._settings.max_dequeue_count:
            raise Unprocessable(f"delivered {delivery.dequeue_count} times without success")
        now = datetime.now(UTC)
        seconds = self._processing_time(parsed, now)
        row = entity.build(delivery.message_id, parsed, now, seconds)
        if await self._fenced(delivery, self._table_outage, partial(self._table.insert, row)):
            self.tally.add_stored(seconds)
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
        return await self._fenced(delivery, self._table_outage, partial(self._table.holds, delivery.message_id))

    async def _poison(self, delivery: Delivery, reason: str) -> None:
        # Stored there before it is deleted here: a crash between the two doubles rather than loses.
        content = poison.envelope(delivery, reason, consumer=socket.gethostname())
        await self._fenced(delivery, self._poison_outage, partial(self._poison_queue.send, content, time_to_live=-1))
        self.tally.poisoned += 1
        log.warning("message sent to the poison queue", message_id=delivery.message_id, reason=reason)

    async def _fenced(self, delivery: Delivery, outage: Outage, call: Callable[[], Awaitable[T]]) -> T:
        """The result of `call`, begun only while the lease outlasts it. Raises LeaseLost.

        It must last for two requests: the service may take its time over one that is given up here.
        """
        needed = 2 * request_timeout(self._settings)
        if delivery.lease.remaining() < needed:
            raise LeaseLost("the lease could end before the request does")
        return await outage.ride_out(call, until=delivery.lease.ends - needed)

    async def _release(self, delivery: Delivery, after: int = 0) -> None:
        """Gives the message back for another delivery; where that fails, its lease ends by itself."""
        try:
            await self._queue.release(delivery, after)
            self.tally.released += 1
        except Exception as error:
            log.debug("message not given back", message_id=delivery.message_id, error=str(error))


def request_timeout(settings: ConsumerSettings) -> float:
    """Seconds one request may take: short enough for several attempts within the lease."""
    return min(10.0, settings.visibility_timeout / 6)


async def run(settings: ConsumerSettings) -> int:
    stop = on_signals()
    started = time.monotonic()
    timeout = request_timeout(settings)
    async with AsyncExitStack() as opened:
        storage = await opened.enter_async_context(Storage(settings))
        consumer = Consumer(
            settings,
            Queue(await storage.queue(settings.queue_name), timeout),
            Queue(await storage.queue(settings.poison_queue_name), timeout),
            Table(await storage.table(settings), timeout),
            stop,
        )
        if settings.http_port:
            await opened.enter_async_context(health.served(settings.http_port, lambda: consumer.is_ready))
        log.info("consumer started", queue=settings.queue_name, table=settings.table_name)
        opened.enter_context(progress.lines("consuming", consumer.tally.counts))
        with suppress(Unavailable):
            await consumer.prepare()
            await consumer.run()
    log.info("consumer stopped", **consumer.tally.summary(), seconds=round(time.monotonic() - started, 3))
    return program.DONE


def main() -> int:
    return program.main(ConsumerSettings, run)
