"""The poison queue's program: lease what is there, show it, put it back into the queue or delete it."""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import structlog

from edw import columns, poison, program
from edw.errors import LeaseLost, Missing, ServiceError, Unavailable
from edw.message import serialize
from edw.option import SettingsError
from edw.outage import Outage
from edw.program import Aborted
from edw.queue import PAGE_MOST, Delivery, Queue
from edw.settings import PoisonSettings
from edw.stop import Stop, on_signals
from edw.storage import Storage

LEASE = 300
"""Seconds for reading everything, the person's answer, and what it asks for. A run that is killed hides the
messages for as long."""
REQUEST_TIMEOUT = 10.0
PATIENCE = 30.0
"""Seconds for which a request is repeated: whoever waits at a terminal wants to know that there is no service."""
CONCURRENCY = 16

HEADER = ("poisoned (UTC)", "deliveries", "reason", "message id", "body")
WHOLE = 2
"""Columns of the header that are never shortened."""

T = TypeVar("T")
Found = tuple[Delivery, dict[str, Any]]
"""A message and its envelope's members."""

log = structlog.get_logger("edw")


class Redrive:
    """What the poison queue holds, under leases of this program."""

    def __init__(self, settings: PoisonSettings, queue: Queue, poison_queue: Queue, stop: Stop) -> None:
        self._settings = settings
        self._queue = queue
        self._poison_queue = poison_queue
        self._stop = stop
        self._outage = Outage("queue service", stop)
        self._held: dict[str, Delivery] = {}
        self._failure: Unavailable | Aborted | None = None
        self.put = 0
        self.done = 0
        self.elsewhere = 0
        """Messages that others have leased."""

    @asynccontextmanager
    async def leased(self) -> AsyncIterator[list[Found]]:
        """Leases every message; those that the settings choose, oldest first.

        At the end of the block, and if it is not reached, what is still there is given back.
        """
        try:
            await self._lease()
            everything = [(delivery, poison.members(delivery)) for delivery in self._held.values()]
            chosen = [found for found in everything if self._is_chosen(found[1])]
            yield sorted(chosen, key=lambda found: found[1]["poisonedOn"])
        except ServiceError:
            self._stop.set()  # what was waited for in vain is not waited for again to give back
            raise
        finally:
            await self._give_back()

    def _is_chosen(self, members: dict[str, Any]) -> bool:
        message_id = self._settings.message_id
        return self._settings.reason in (members["reason"] or "") and message_id in ("", members["messageId"])

    async def settle(self, chosen: Iterable[Found]) -> None:
        """Puts the messages back into the queue or only deletes them, as the settings say.

        Raises what kept it from going on. `done` counts the messages that are gone from the poison queue, `put`
        those that went into the queue.
        """
        await _each(self._settle, chosen)
        if self._failure:
            raise self._failure

    async def _lease(self) -> None:
        try:
            there = await self._ride_out(self._poison_queue.length)
        except Missing:
            raise Aborted(
                f"there is no queue {self._poison_queue.name}: consumers create it when they start; "
                "are AZURE_QUEUE_NAME and EDW_POISON_QUEUE_NAME right?"
            ) from None
        # No more than were there at first: a consumer may poison messages as fast as they are received here.
        while there > 0 and not self._stop.is_set():
            page = await self._ride_out(partial(self._poison_queue.receive, min(there, PAGE_MOST), LEASE))
            if not page:
                self.elsewhere = there
                say(f"Leased elsewhere and left alone for now: about {messages(there)} of {self._poison_queue.name}.")
                break
            self._held |= {delivery.message_id: delivery for delivery in page}
            there -= len(page)
        if self._stop.is_set():
            raise Aborted("interrupted; nothing was changed")

    async def _settle(self, found: Found) -> None:
        delivery, members = found
        if self._stop.is_set():
            return
        try:
            # Time for two requests: what is put on a lease that ends before the delete may be put again by others.
            begin_by = delivery.lease.ends - 2 * REQUEST_TIMEOUT
            if time.monotonic() > begin_by:
                raise LeaseLost("the lease could end before the message is deleted")
            if self._settings.command == "requeue":
                # Before it is deleted: a crash between the two doubles rather than loses.
                await self._ride_out(partial(self._queue.send, members["body"]), begin_by)
                self.put += 1
            await self._ride_out(partial(self._poison_queue.delete, delivery), delivery.lease.ends)
            del self._held[delivery.message_id]
            self.done += 1
            if self._settings.json:
                emit(serialize(members))
        except LeaseLost as error:
            log.debug("message left", message_id=delivery.message_id, error=str(error))
        except (Unavailable, Aborted) as error:
            self._failure = self._failure or error
            self._stop.set()
        except ServiceError as error:
            log.error("message left", message_id=delivery.message_id, error=str(error))

    async def _give_back(self) -> None:
        until = time.monotonic() + PATIENCE

        async def release(delivery: Delivery) -> None:
            with suppress(LeaseLost):
                await self._ride_out(partial(self._poison_queue.release, delivery), until)
            del self._held[delivery.message_id]

        try:
            await _each(release, list(self._held.values()))
        except* ServiceError as errors:
            log.debug("messages not given back", error=str(errors.exceptions[0]))
            say(f"{messages(len(self._held))} could not be given back: visible again within {LEASE} s.")

    async def _ride_out(self, call: Callable[[], Awaitable[T]], until: float = float("inf")) -> T:
        until = min(until, time.monotonic() + PATIENCE)
        return await self._outage.ride_out(call, lambda: until)


async def _each(do: Callable[[T], Awaitable[None]], items: Iterable[T]) -> None:
    """Does it for every item, for some of them at once."""
    waiting = iter(items)

    async def work() -> None:
        for item in waiting:
            await do(item)

    async with asyncio.TaskGroup() as workers:
        for _ in range(CONCURRENCY):
            workers.create_task(work())


async def show(redrive: Redrive, settings: PoisonSettings) -> int:
    async with redrive.leased() as found:
        pass  # given back before it is shown: a pager takes its time
    documents = [members for _, members in found]
    if not documents:
        say(nothing(settings))
    elif settings.json:
        for document in documents:
            emit(serialize(document))
    else:
        width = shutil.get_terminal_size(fallback=(1000, 24)).columns
        for line in columns.lines(HEADER, map(row, documents), width, WHOLE):
            emit(line)
    return program.FAILED if redrive.elsewhere else program.DONE


async def change(redrive: Redrive, settings: PoisonSettings, stop: Stop) -> int:
    async with redrive.leased() as found:
        if not found:
            say(nothing(settings))
            return program.FAILED if redrive.elsewhere else program.DONE
        if settings.yes:
            say(f"{question(settings, len(found))} --yes")
        elif not await agreed(question(settings, len(found)), stop):
            say("Nothing was changed.")
            return program.FAILED
        try:
            await redrive.settle(found)
        finally:
            left = len(found) - redrive.done
            say(outcome(redrive, settings, left))
    return program.FAILED if left or redrive.elsewhere else program.DONE


async def agreed(text: str, stop: Stop) -> bool:
    """The person's answer; no where the program is asked to stop instead."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()

    def read() -> None:
        loop.remove_reader(sys.stdin)
        answer.set_result(sys.stdin.readline())

    say(f"{text} [y/N] ", end="")
    # Not by waiting in a read, in which nobody could stop the program.
    loop.add_reader(sys.stdin, read)
    stopped = loop.create_task(stop.wait())
    either: set[asyncio.Future[Any]] = {answer, stopped}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    loop.remove_reader(sys.stdin)
    stopped.cancel()
    return answer.done() and answer.result().strip().lower() in ("y", "yes")


def row(members: dict[str, Any]) -> list[str]:
    """The cells of a message, as HEADER names them."""
    poisoned = members["poisonedOn"].replace("T", " ")[:19]
    others = (members[name] for name in ("dequeueCount", "reason", "messageId", "body"))
    return [poisoned, *("-" if value is None else str(value) for value in others)]


def nothing(settings: PoisonSettings) -> str:
    which = f" with the id {settings.message_id}" if settings.message_id else ""
    which += f" whose reason contains {settings.reason!r}" if settings.reason else ""
    return f"Nothing to {settings.command} in {settings.poison_queue_name}{which}."


def question(settings: PoisonSettings, count: int) -> str:
    amount = f"{messages(count)} of {settings.poison_queue_name}"
    return f"Put {amount} back into {settings.queue_name}?" if settings.command == "requeue" else f"Delete {amount}?"


def outcome(redrive: Redrive, settings: PoisonSettings, left: int) -> str:
    said = f"{messages(redrive.done)} {'put back' if settings.command == 'requeue' else 'deleted'}"
    if not left:
        return f"{said}."
    both = redrive.put - redrive.done
    also = f", {both:,} of them put into {settings.queue_name} too" if both > 0 else ""
    return f"{said}, {left:,} left in {settings.poison_queue_name}{also}: run it again."


def messages(count: int) -> str:
    return f"{count:,} message{'' if count == 1 else 's'}"


def say(text: str, end: str = "\n") -> None:
    """Tells the person, who may have standard output in a file or a pipe."""
    print(text, end=end, file=sys.stderr, flush=True)


def emit(line: str) -> None:
    """Writes a line of the result. Raises Aborted where nobody takes it."""
    try:
        print(line, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter will try again at its end
        raise Aborted(f"standard output: {error.strerror}") from None


async def run(settings: PoisonSettings) -> int:
    if settings.command != "list" and not settings.yes and not os.isatty(0):
        raise SettingsError(f"{settings.command} asks first, and standard input is no terminal: add --yes")
    stop = on_signals()
    async with Storage(settings) as storage:
        queue = Queue(await storage.queue(settings.queue_name), REQUEST_TIMEOUT)
        poison_queue = Queue(await storage.queue(settings.poison_queue_name), REQUEST_TIMEOUT)
        redrive = Redrive(settings, queue, poison_queue, stop)
        try:
            return await (show(redrive, settings) if settings.command == "list" else change(redrive, settings, stop))
        except ServiceError as error:
            raise Aborted(str(error)) from None


def main() -> int:
    return program.main(PoisonSettings, run)
