"""What the integration tests are written with: the programs as processes, and a look at what they did."""

import asyncio
import codecs
import json
import os
import re
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from azure.core.exceptions import ResourceNotFoundError
from azure.data.tables.aio import TableClient
from azure.storage.queue.aio import QueueClient

import report
from azurite import Service
from edw import entity, message
from edw.settings import ConsumerSettings

APP = Path(__file__).parents[2] / "app"
WITHIN = 30.0


async def eventually(condition: Callable[[], Any], within: float = WITHIN) -> Any:
    """What `condition`, plain or asynchronous, returns as soon as it is true."""
    async with asyncio.timeout(within):
        while True:
            value = condition()
            if isinstance(value, Awaitable):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.02)


class Program:
    """A running or ended program and the log it wrote."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.stdout = self.stderr = ""
        self._reading = asyncio.gather(self._read("stdout"), self._read("stderr"))

    async def _read(self, stream: str) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        source: asyncio.StreamReader | None = getattr(self.process, stream)
        while source and (data := await source.read(65_536)):  # not by lines: a question ends without a line's end
            setattr(self, stream, getattr(self, stream) + decoder.decode(data))

    async def ended(self, within: float = WITHIN) -> int:
        """The exit code."""
        async with asyncio.timeout(within):
            await self._reading
            return await self.process.wait()

    async def stopped(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit code after a signal."""
        self.process.send_signal(number)
        return await self.ended()

    def log(self) -> list[dict[str, Any]]:
        """The log lines, which the settings have as JSON."""
        return [json.loads(line) for line in self.stderr.splitlines() if line.startswith("{") and line.endswith("}")]

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log() if line["event"] == event]

    async def says(self, event: str) -> dict[str, Any]:
        first: dict[str, Any] = (await eventually(lambda: self.events(event)))[0]
        return first

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.ended()


class Workflow:
    """A queue, a poison queue and a table of its own on a storage service, and programs that use them."""

    def __init__(self, connection_string: str, folder: Path) -> None:
        name = f"t{uuid4().hex[:12]}"
        self.folder = folder
        self.environment = {
            "PATH": os.environ["PATH"],
            "AZURE_STORAGE_CONNECTION_STRING": connection_string,
            "AZURE_QUEUE_NAME": name,
            "AZURE_TABLE_NAME": name,
            "EDW_LOG_FORMAT": "json",
        }
        self.settings = ConsumerSettings(storage_connection_string=connection_string, queue_name=name, table_name=name)
        self.client_options: dict[str, Any] = {}
        self.app = APP
        self.launcher: list[str] = []
        """What starts the programs, if not this alone."""
        self.queue: QueueClient
        self.poison_queue: QueueClient
        self.table: TableClient
        self._programs: list[Program] = []

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Workflow"]:
        connection_string = self.settings.storage_connection_string or ""
        async with report.clients(connection_string, **self.client_options) as (queues, tables):
            self.queue = queues.get_queue_client(self.settings.queue_name)
            self.poison_queue = queues.get_queue_client(self.settings.poison_queue_name)
            self.table = tables.get_table_client(self.settings.table_name)
            try:
                yield self
            finally:
                for program in self._programs:
                    await program.kill()

    async def create(self) -> "Workflow":
        """Creates queues and table, for tests that put something in before a program has."""
        await asyncio.gather(self.queue.create_queue(), self.poison_queue.create_queue(), self.table.create_table())
        return self

    async def put(self, *contents: str) -> None:
        for content in contents:
            await self.queue.send_message(content)

    async def send(self, *msgs: str) -> None:
        """Puts well-formed messages, several at a time."""
        slots = asyncio.Semaphore(8)

        async def put(msg: str) -> None:
            async with slots:
                await self.put(message.compose(msg, datetime.now(UTC)))

        await asyncio.gather(*map(put, msgs))

    def handle_with(self, source: str) -> None:
        """Consumers started from now on have this as their app/handler.py, as users put theirs."""
        self.app = self.folder / f"app-{uuid4().hex[:6]}"
        shutil.copytree(APP, self.app, ignore=shutil.ignore_patterns("__pycache__"))
        (self.app / "handler.py").write_text(source)

    async def start(
        self, program: str, *argv: str, stdin: bytes | int = DEVNULL, stdout: int = PIPE, **environment: str
    ) -> Program:
        """The running program. Its standard input is a file descriptor, or a pipe with these bytes."""
        process = await asyncio.create_subprocess_exec(
            *self.launcher,
            sys.executable,
            str(self.app / f"aqs-{program}.py"),
            *argv,
            env={name: value for name, value in (self.environment | environment).items() if value},
            cwd=self.folder,
            stdin=stdin if isinstance(stdin, int) else PIPE,
            stdout=stdout,
            stderr=PIPE,
        )
        self._programs.append(Program(process))
        if isinstance(stdin, bytes) and process.stdin:
            process.stdin.write(stdin)
            process.stdin.close()
        return self._programs[-1]

    async def run(
        self, program: str, *argv: str, stdin: bytes | int = DEVNULL, stdout: int = PIPE, **environment: str
    ) -> Program:
        """The program once it has ended."""
        running = await self.start(program, *argv, stdin=stdin, stdout=stdout, **environment)
        await running.ended()
        return running

    async def drained(self, **environment: str) -> Program:
        """A consumer that took everything there was and ended with 0."""
        consumer = await self.run("consumer", "--drain", **environment)
        assert consumer.process.returncode == 0, consumer.stderr
        return consumer

    async def rows(self) -> list[dict[str, Any]]:
        """Every entity; none where no program has created the table yet."""
        try:
            return [dict(row) async for row in self.table.list_entities()]
        except ResourceNotFoundError:
            return []

    async def stored(self) -> list[str]:
        """The msg of every entity."""
        return sorted(entity.data(row) for row in await self.rows())

    async def is_empty(self) -> bool:
        """Whether nothing is in the queue any more, leased messages included."""
        return await self.left() == 0

    async def emptied(self, within: float = WITHIN) -> None:
        await eventually(self.is_empty, within)

    async def holds_exactly(self, *msgs: str) -> None:
        """Asserts that each of these, and nothing else, is stored, once."""
        rows = await self.rows()
        doubled = [key for key, times in Counter(row["PartitionKey"] for row in rows).items() if times > 1]
        assert doubled == []
        stored = Counter(entity.data(row) for row in rows)
        assert stored - Counter(msgs) == Counter()
        assert Counter(msgs) - stored == Counter()

    async def left(self) -> int:
        """Messages in the queue, leased ones included; 0 where no program has created it yet."""
        return await report.length(self.queue)

    async def are_visible(self, count: int) -> bool:
        """Whether so many messages of the queue, up to 32, can be received now."""
        return len(await self.queue.peek_messages(32)) == min(count, 32)

    async def has_fewer_than(self, count: int) -> bool:
        """Whether the queue does."""
        return await self.left() < count

    async def poison_left(self) -> int:
        """Messages in the poison queue."""
        return await report.length(self.poison_queue)

    async def envelopes(self) -> list[dict[str, Any]]:
        """Every poison message, which must be in an envelope."""
        return [json.loads(content) for content in await self.poisoned()]

    async def poisoned(self) -> list[str]:
        """The content of every poison message."""
        return [message.content async for message in self.poison_queue.receive_messages()]


class Wiretap:
    """A TCP proxy that keeps what passes, and counts connections."""

    def __init__(self, target: str) -> None:
        self.host, _, port = target.removeprefix("http://").partition("/")[0].partition(":")
        self.port = int(port)
        self.connections = 0
        self.requests = b""
        self.answers = b""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """The port to connect to."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        far_reader, far_writer = await asyncio.open_connection(self.host, self.port)
        try:
            await asyncio.gather(self._pump(reader, far_writer, "requests"), self._pump(far_reader, writer, "answers"))
        except ConnectionError:
            pass
        finally:
            writer.close()
            far_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: str) -> None:
        while data := await reader.read(65_536):
            setattr(self, kept, getattr(self, kept) + data)
            writer.write(data)
            await writer.drain()
        writer.close()

    def pop_receipts(self) -> set[str]:
        return set(re.findall(r"<PopReceipt>([^<]+)</PopReceipt>", self.answers.decode(errors="replace")))


@asynccontextmanager
async def tapped(service: Service) -> AsyncIterator[tuple[str, Wiretap, Wiretap]]:
    """A connection string that leads through wiretaps before the queue and the table service, and these two."""
    queue_tap, table_tap = Wiretap(service.queue_endpoint), Wiretap(service.table_endpoint)
    async with queue_tap.listening() as queue_port, table_tap.listening() as table_port:
        through = service.connection_string.replace(f":{queue_tap.port}/", f":{queue_port}/")
        yield through.replace(f":{table_tap.port}/", f":{table_port}/"), queue_tap, table_tap
