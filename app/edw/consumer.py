"""The consumer: receive under a lease, handle, store one entity per message, delete."""

import asyncio
import socket
import time
import zlib
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import structlog

from edw import entity, handling, health, message, poison, program, progress
from edw.backoff import Backoff
from edw.errors import ContentRefused, LeaseLost, ServiceError, Unavailable
from edw.handling import Handler
from edw.keeper import Keeper
from edw.limit import Limit
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
GIVE_BACK_WITHIN = 1.0
"""Seconds that giving back may take when the time that a stop allows is over."""

T = TypeVar("T")
log = structlog.get_logger("edw")


class Consumer:
    """Works on up to `concurrency` messages at once, each under its own lease."""

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
        self._handle = handling.asynchronous(handle, settings.concurrency)
        self._stop = stop
        self._limit = Limit(settings.concurrency)
        self._queue_outage = Outage("queue", stop, queue.create, self._limit.shrink)
        self._poison_outage = Outage("poison queue", stop, poison_queue.create, self._limit.shrink)
        self._table_outage = Outage("table", stop, table.create, self._limit.shrink)
        self._idle = Backoff(settings.poll_interval_min, settings.poll_interval_max)
        self._working: set[asyncio.Task[None]] = set()
        self._room_made = asyncio.Event()
        self._polled = False
        self.tally = Tally()
        self._keeper = Keeper(queue, settings.visibility_timeout, self.tally)

    @property
    def is_ready(self) -> bool:
        """Whether the services answered when they were last asked."""
        return self._polled and not (self._queue_outage.is_on or self._table_outage.is_on)

    async def run(self) -> None:
        """Works until told to stop, or until there is nothing left if the settings say drain.

        After a stop, what is not done when the settings' time for it is over is given back.
        """
        async with self._keeper.running():
            polling = asyncio.create_task(self._poll())
            stopped = asyncio.create_task(self._stop.wait())
            await asyncio.wait({polling, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            deadline = time.monotonic() + self._settings.stop_timeout
            await _cancelled_after(deadline, {polling})
            await _cancelled_after(deadline, self._working)
        if not polling.cancelled():
            polling.result()

    async def _poll(self) -> None:
        with suppress(Unavailable):  # and asked to stop
            await self._prepare()
            while not self._stop.is_set():
                room = await self._room()
                was_busy = bool(self._working)
                page = await self._receive(room)
                if self._stop.is_set():
                    await asyncio.gather(*map(self._release, page))
                    break
                await self._begin(page)
                if page:
                    self._idle.reset()
                elif self._settings.drain and not was_busy:
                    break
                if len(page) < room:
                    await self._stop.sleep(self._idle.next())

    async def _prepare(self) -> None:
        """Creates what is missing of queue, poison queue and table.

        What the identity may not create is taken to be there; if it is not, the first request says so.
        """
        await self._queue_outage.ride_out(self._queue.create)
        await self._poison_outage.ride_out(self._poison_queue.create)
        await self._table_outage.ride_out(self._table.create)

    async def _room(self) -> int:
        """How many messages to fetch: never more than can be started at once.

        Waits until there is room for a page, because fuller pages are fewer requests; but where slow messages
        hold the room, no longer than a poll interval if there is room at all.
        """
        while self._free() < self._page():
            self._room_made.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._room_made.wait(), self._settings.poll_interval_min)
            if self._free() > 0:
                break
        return min(self._free(), PAGE_MOST)

    def _free(self) -> int:
        return self._limit.now - len(self._working)

    def _page(self) -> int:
        # Half at a time: the other half keeps working while a page is fetched.
        return max(1, min(PAGE_MOST, self._limit.now // 2))

    async def _receive(self, room: int) -> list[Delivery]:
        """A page; none, and nothing delivered, while a service is down: each delivery counts against its message."""
        await self._table_outage.over(self._table.probe)
        if self._stop.is_set():
            return []
        page = await self._queue_outage.ride_out(
            partial(self._queue.receive, room, self._settings.visibility_timeout),
            probe=self._queue.probe,  # a receive whose answer is lost on the way is a delivery too
        )
        self._polled = True
        self.tally.received += len(page)
        return page

    async def _begin(self, page: list[Delivery]) -> None:
        """Starts the work on every message; returns when there may be more of it.

        On its last two deliveries a message is worked on by itself, before the next page: if it kills its process,
        it takes along as few others as can be. What waits for it goes first the other time.
        """
        for delivery in page:
            self._keeper.hold(delivery)
        suspects = [delivery for delivery in page if self._is_suspect(delivery)]
        for delivery in page:
            if delivery not in suspects:
                self._start(delivery)
        for delivery in sorted(suspects, key=_there_and_back):
            if self._stop.is_set():
                await self._keeper.let_go(delivery)
                await self._release(delivery)
            else:
                await asyncio.wait([self._start(delivery)])

    def _is_suspect(self, delivery: Delivery) -> bool:
        return delivery.dequeue_count > 1 and delivery.dequeue_count >= self._settings.max_dequeue_count - 1

    def _start(self, delivery: Delivery) -> asyncio.Task[None]:
        task = asyncio.create_task(self._work(delivery))
        self._working.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._working.discard(task)
        if self._free() >= self._page():
            self._room_made.set()

    async def _work(self, delivery: Delivery) -> None:
        try:
            try:
                await self._store_or_poison(delivery)
            finally:
                await self._keeper.let_go(delivery)
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
        except asyncio.CancelledError:  # the time that a stop allows is over
            await self._release(delivery)
        except Exception as error:
            _log_failure(delivery, error)
            await self._release(delivery, min(2**delivery.dequeue_count, RETRY_LONGEST))

    async def _store_or_poison(self, delivery: Delivery) -> None:
        try:
            await self._store(delivery)
        except (LeaseLost, Unavailable):
            raise
        except (Unprocessable, ContentRefused) as error:
            await self._poison(delivery, str(error))
        except Exception as error:
            if delivery.dequeue_count < self._settings.max_dequeue_count:
                raise
            _log_failure(delivery, error)
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
            self._limit.grow()
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
        return await self._fenced(delivery, self._table_outage, partial(self._table.keep_one, delivery.message_id))

    async def _insert(self, delivery: Delivery, row: dict[str, object]) -> bool:
        try:
            return await self._fenced(delivery, self._table_outage, partial(self._table.insert, row))
        finally:
            # A process can be frozen between fence and request, and its insert meet that of the next delivery.
            if is_late := delivery.lease.remaining() < 0:
                await asyncio.sleep(request_timeout(self._settings))  # the service may take its time over it
            if is_late or delivery.dequeue_count > 1:
                await self._table_outage.ride_out(partial(self._table.keep_one, delivery.message_id))

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
        try:
            return await outage.ride_out(call, until=lambda: delivery.lease.ends - needed)
        except asyncio.CancelledError:
            raise Unavailable("a request was under way when the consumer had to stop", kind="Stopped") from None

    async def _release(self, delivery: Delivery, after: int = 0) -> None:
        """Gives the message back for another delivery; where that fails, its lease ends by itself."""
        try:
            await self._queue.release(delivery, after)
            self.tally.released += 1
        except Exception as error:
            log.debug("message not given back", message_id=delivery.message_id, error=str(error))


async def _cancelled_after(deadline: float, tasks: set[asyncio.Task[None]]) -> None:
    """Returns when all have ended, by themselves or, soon after the deadline, because they are cancelled."""
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=max(0.0, deadline - time.monotonic()))
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=GIVE_BACK_WITHIN)


def _there_and_back(delivery: Delivery) -> int:
    """A place in the order of a page: any order, but at every other delivery the opposite one."""
    place = zlib.crc32(delivery.message_id.encode())
    return place if delivery.dequeue_count % 2 else -place


def _log_failure(delivery: Delivery, error: Exception) -> None:
    # A refused request needs no traceback, a fault of the program does.
    is_fault = not isinstance(error, ServiceError)
    log.error(
        "message failed", message_id=delivery.message_id, error=_named(error), exc_info=error if is_fault else None
    )


def _named(error: Exception) -> str:
    return str(error) if isinstance(error, ServiceError) else f"{type(error).__name__}: {error}"


def request_timeout(settings: ConsumerSettings) -> float:
    """Seconds one request may take: short enough for several attempts within the lease."""
    return min(10.0, settings.visibility_timeout / 6)


async def run(settings: ConsumerSettings, handle: Handler) -> int:
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
            handle,
            stop,
        )
        if settings.http_port:
            await opened.enter_async_context(health.served(settings.http_port, lambda: consumer.is_ready))
        log.info("consumer started", queue=settings.queue_name, table=settings.table_name)
        opened.enter_context(progress.lines("consuming", consumer.tally.counts))
        await consumer.run()
    log.info("consumer stopped", **consumer.tally.summary(), seconds=round(time.monotonic() - started, 3))
    return program.DONE


def main(handle: Handler) -> int:
    return program.main(ConsumerSettings, partial(run, handle=handle))
