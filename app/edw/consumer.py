"""The consumer: receives messages under a lease, no more than it can start at once, until it is asked to stop."""

import asyncio
import itertools
import time
import zlib
from collections.abc import Iterable
from contextlib import AsyncExitStack, suppress
from functools import partial

import structlog

from edw import health, program, progress
from edw.backoff import Backoff
from edw.errors import Unavailable
from edw.handling import Handler
from edw.queue import PAGE_MOST, Delivery, Queue
from edw.settings import ConsumerSettings
from edw.stop import Stop, on_signals
from edw.storage import Storage
from edw.table import Table
from edw.worker import Worker, request_timeout

GIVE_BACK_WITHIN = 2.0
"""Seconds that giving back may take when the time that a stop allows is over."""
ALONE = 2.0
"""Seconds after which a message that has not killed its process no longer holds up the others."""

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
        self._stop = stop
        self._worker = Worker(settings, queue, poison_queue, table, handle, stop)
        self._idle = Backoff(settings.poll_interval_min, settings.poll_interval_max)
        self._working: set[asyncio.Task[None]] = set()
        self._room_made = asyncio.Event()
        self._polled = False
        self.tally = self._worker.tally

    @property
    def is_ready(self) -> bool:
        """Whether the services answered when they were last asked."""
        worker = self._worker
        outages = (worker.queue_outage, worker.table_outage, worker.poison_outage)
        return self._polled and not any(outage.is_on for outage in outages)

    async def run(self) -> None:
        """Works until told to stop, or until there is nothing left if the settings say drain.

        After a stop, what is not done when the settings' time for it is over is given back.
        """
        async with self._worker.keeper.running():
            polling = asyncio.create_task(self._poll())
            await self._stop.or_done(polling)
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
                    await self._give_back(page)
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
        await self._worker.queue_outage.ride_out(self._queue.create)
        await self._worker.poison_outage.ride_out(self._poison_queue.create)
        await self._worker.table_outage.ride_out(self._table.create)

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
        return self._worker.limit.now - len(self._working)

    def _page(self) -> int:
        # Half at a time: the other half keeps working while a page is fetched.
        return max(1, min(PAGE_MOST, self._worker.limit.now // 2))

    async def _receive(self, room: int) -> list[Delivery]:
        """A page; none, and nothing delivered, while a service is down: each delivery counts against its message."""
        await self._worker.table_outage.over(self._table.probe)
        await self._worker.queue_outage.over(self._queue.probe)
        if self._stop.is_set():
            return []
        rooms = itertools.chain([room], itertools.repeat(1))

        async def receive() -> list[Delivery]:
            # A receive whose answer is lost on the way is a delivery too: after the first one of as few as can be.
            return await self._queue.receive(next(rooms), self._settings.visibility_timeout)

        page = await self._worker.queue_outage.ride_out(receive, probe=self._queue.probe)
        self._polled = True
        self.tally.received += len(page)
        return page

    async def _begin(self, page: list[Delivery]) -> None:
        """Starts the work on every message; returns when there may be more of it.

        On its last two deliveries a message is worked on by itself, before the next page: if it kills its process,
        it takes along as few others as can be. What waits for it goes first the other time.
        """
        for delivery in page:
            self._worker.keeper.hold(delivery)
        suspects = sorted(filter(self._is_suspect, page), key=_there_and_back)
        for delivery in page:
            if delivery not in suspects:
                self._start(delivery)
        while suspects and not self._stop.is_set():
            await self._stop.or_done(self._start(suspects.pop(0)), ALONE)
        await self._give_back(suspects)

    def _is_suspect(self, delivery: Delivery) -> bool:
        last = self._settings.max_dequeue_count
        return delivery.dequeue_count > 1 and last - 1 <= delivery.dequeue_count <= last

    def _start(self, delivery: Delivery) -> asyncio.Task[None]:
        task = asyncio.create_task(self._worker.work(delivery))
        self._working.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._working.discard(task)
        if self._free() >= self._page():
            self._room_made.set()

    async def _give_back(self, page: Iterable[Delivery]) -> None:
        await asyncio.gather(*map(self._worker.give_back, page))


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
