"""The producer: messages, generated or read from a file, into the queue. Sending is at least once."""

import asyncio
import codecs
import functools
import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

import structlog

from edw import message, program, progress
from edw.errors import ServiceError, Unavailable
from edw.message import BODY_MOST
from edw.option import SettingsError
from edw.outage import Outage
from edw.queue import Queue
from edw.settings import ProducerSettings
from edw.stop import Stop, on_signals
from edw.storage import Storage

REQUEST_TIMEOUT = 10.0
CATCH_UP = 1.0
"""Seconds of a rate that a delay may make up for; what is later than that is not sent in one burst."""
LINES_AHEAD = 1000
"""Lines of input that are read before they are sent."""

log = structlog.get_logger("edw")


class Draft(NamedTuple):
    """A message to be: what to call it, and what makes its body for the time at which it is sent."""

    name: str
    compose: Callable[[datetime], str]


class Pace:
    """The turns of a rate in messages a second; 0 has no turns to wait for."""

    def __init__(self, rate: float) -> None:
        self._gap = 1 / rate if rate else 0.0
        self._turn: float | None = None

    def wait(self, now: float) -> float:
        """Seconds from `now` until the turn of the next message; negative if it is late."""
        if not self._gap:
            return 0.0
        turn = now if self._turn is None else max(self._turn, now - CATCH_UP)
        self._turn = turn + self._gap
        return turn - now


class Producer:
    """Sends up to `concurrency` messages at once, begun at the rate of the settings."""

    def __init__(self, settings: ProducerSettings, queue: Queue, messages: AsyncIterator[Draft], stop: Stop) -> None:
        self._settings = settings
        self._queue = queue
        self._messages = messages
        self._stop = stop
        self._outage = Outage("queue", stop, queue.create)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._pace = Pace(settings.rate or 0)
        self.sent = 0
        self.failed = 0

    def counts(self) -> dict[str, int]:
        return {"sent": self.sent, "failed": self.failed}

    async def prepare(self) -> None:
        """Creates the queue where it is missing. Raises Unavailable when stopped before the service answers."""
        await self._outage.ride_out(self._queue.create)

    async def run(self) -> None:
        """Sends until the messages end or the program is asked to stop; what is under way is finished."""
        async with asyncio.TaskGroup() as sends:
            stopped = asyncio.create_task(self._stop.wait())
            begun = asyncio.create_task(self._begin(sends))
            try:
                await asyncio.wait({begun, stopped}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stopped.cancel()
                ended_by_itself = not begun.cancel()  # which says no to a task that has ended
            if ended_by_itself:
                begun.result()

    async def _begin(self, sends: asyncio.TaskGroup) -> None:
        async for draft in self._messages:
            await self._slots.acquire()
            await asyncio.sleep(self._pace.wait(time.monotonic()))
            sends.create_task(self._send(draft))

    async def _send(self, draft: Draft) -> None:
        try:
            content = message.encode(draft.compose(datetime.now(UTC)), self._settings.message_encoding)
            if len(content) > BODY_MOST:
                raise message.Unprocessable(f"{len(content)} bytes as sent, and a message has at most {BODY_MOST}")
            await self._outage.ride_out(functools.partial(self._queue.send, content, self._settings.time_to_live))
            self.sent += 1
            log.debug("message sent", message=draft.name)
        except Exception as error:
            self.failed += 1
            is_fault = not isinstance(error, ServiceError | message.Unprocessable)
            log.error("message not sent", message=draft.name, error=str(error), exc_info=is_fault)
        finally:
            self._slots.release()


async def generated(count: int | None) -> AsyncIterator[Draft]:
    """The messages of the AWS workload's producer, numbered from 1."""
    number = 0
    while count is None or number < count:
        number += 1
        text = f"Scale Test Message : COUNT {number}"
        yield Draft(f"COUNT {number}", functools.partial(message.compose, text))


async def from_lines(source: BinaryIO, count: int | None) -> AsyncIterator[Draft]:
    """A message for each line that is not blank."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes | OSError | None] = asyncio.Queue()
    room = threading.Semaphore(LINES_AHEAD)

    def read() -> None:
        with source, suppress(RuntimeError):  # which says that the loop ended before the source
            try:
                for line in source:
                    room.acquire()
                    loop.call_soon_threadsafe(lines.put_nowait, line)
            except OSError as error:
                loop.call_soon_threadsafe(lines.put_nowait, error)
            loop.call_soon_threadsafe(lines.put_nowait, None)

    # A daemon, because nothing can interrupt a read of standard input and the program must end all the same.
    threading.Thread(target=read, daemon=True).start()
    number = yielded = 0
    while (count is None or yielded < count) and (line := await lines.get()) is not None:
        room.release()
        number += 1
        if isinstance(line, OSError):
            yield Draft(f"line {number}", functools.partial(_unreadable, line))
        elif line.strip():
            yielded += 1
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            yield Draft(f"line {number}", functools.partial(body_of_line, line))


def body_of_line(line: bytes, at: datetime) -> str:
    """The body for a line of input: a JSON object with `msg` as it is, with a `srcStamp` if it has none; any
    other line as the `msg`. Raises Unprocessable."""
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise message.Unprocessable(f"a line that is not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        document = json.loads(text)
        if isinstance(document, dict) and "msg" in document:
            return message.serialize({**document, "srcStamp": document.get("srcStamp", message.stamp(at))})
    except (ValueError, RecursionError):
        pass  # what cannot be read, or not be written as JSON again, is text
    return message.compose(text, at)


def _unreadable(error: OSError, _: datetime) -> str:
    raise message.Unprocessable(f"the rest of the input cannot be read: {error.strerror}")


def open_input(path: str) -> BinaryIO:
    """The file, or standard input for `-`. Raises SettingsError where it cannot be read."""
    try:
        return os.fdopen(0, "rb", closefd=False) if path == "-" else Path(path).open("rb")
    except OSError as error:
        raise SettingsError(f"EDW_INPUT: {path!r} cannot be read: {error.strerror}") from None


async def run(settings: ProducerSettings) -> int:
    # Before signals only ask: opening a named pipe waits for its writer.
    messages = from_lines(open_input(settings.input), settings.count) if settings.input else generated(settings.count)
    stop = on_signals()
    async with Storage(settings) as storage:
        queue = Queue(await storage.queue(settings.queue_name), REQUEST_TIMEOUT)
        producer = Producer(settings, queue, messages, stop)
        log.info("producer started", queue=settings.queue_name)
        started = time.monotonic()
        if settings.duration:
            asyncio.get_running_loop().call_later(settings.duration, stop.set)
        has_begun = False
        with shown(producer, settings.count):
            try:
                await producer.prepare()
                has_begun = True
                await producer.run()
            except Unavailable as error:
                log.error("stopped before the service answered", error=str(error))
    seconds = time.monotonic() - started
    log.info("producer stopped", **producer.counts(), seconds=round(seconds, 3), rate=round(producer.sent / seconds, 1))
    return program.FAILED if producer.failed or not has_begun else program.DONE


def shown(producer: Producer, total: int | None) -> AbstractContextManager[None]:
    """A bar on a terminal, a log line now and then elsewhere."""
    if sys.stderr.isatty():
        return progress.bar("sent", lambda: producer.sent, total)
    return progress.lines("sending", producer.counts)


def main() -> int:
    return program.main(ProducerSettings, run)
