#!/usr/bin/env python3
"""The whole workflow on this machine: Azurite, a producer and consumers as real processes, and the proof.

Exit code 0 if every message was stored exactly once, 1 if not, 130 after Ctrl-C.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from azure.core.exceptions import AzureError

import azurite
import report
from edw import progress
from edw.option import integer
from edw.storage import Storage
from report import ReportSettings

APP = Path(__file__).parent.parent / "app"
STALLED = 60.0
"""Seconds without a new entity after which the demo gives up."""
STOP_WITHIN = 15.0


class Stalled(Exception):
    """Raised when nothing more is stored although messages are missing."""


class Programs:
    """Processes of the programs; the output of each goes to a file of its own."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self._folder = folder
        own = {name: value for name, value in os.environ.items() if not name.startswith(("AZURE_", "EDW_"))}
        self._environment = own | settings
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, program: str, **settings: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("wb") as output:
            self._started[name] = subprocess.Popen(
                [sys.executable, str(APP / program)],
                env=self._environment | settings,
                cwd=self._folder,  # no .env of the user's here
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal is for the demo, which stops them in turn
            )
        return self._started[name]

    def stop(self) -> None:
        """Asks every process to stop, and kills those that do not in time."""
        for process in self._started.values():
            process.terminate()
        deadline = time.monotonic() + STOP_WITHIN
        for process in self._started.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Ends it at once, on purpose: it counts as no failure."""
        process.kill()
        process.wait()
        self._started = {name: other for name, other in self._started.items() if other is not process}

    def failures(self) -> list[str]:
        """What each process that did not end with 0 said last."""
        return [
            f"{name} ended with {process.returncode}:\n" + "\n".join(self._last_lines(name))
            for name, process in self._started.items()
            if process.returncode != 0
        ]

    def _last_lines(self, name: str) -> list[str]:
        return (self._folder / f"{name}.log").read_text().splitlines()[-20:]


@contextmanager
def programs(settings: dict[str, str]) -> Iterator[Programs]:
    with tempfile.TemporaryDirectory(prefix="edw-demo-") as folder:
        started = Programs(Path(folder), settings)
        try:
            yield started
        finally:
            started.stop()


async def all_stored(storage: Storage, settings: ReportSettings, producer: subprocess.Popen[bytes]) -> None:
    """Shows how many messages are stored until all that were sent are. Raises Stalled."""
    table = await storage.table(settings)
    queue = await storage.queue(settings.queue_name)
    stored, moved = 0, time.monotonic()
    with progress.bar("stored", lambda: stored, settings.count) if sys.stderr.isatty() else nullcontext():
        while stored < settings.count or producer.poll() is None or await report.length(queue):
            await asyncio.sleep(0.5)
            before, stored = stored, len(set(await report.stored_ids(table)))
            if stored > before:
                moved = time.monotonic()
                if not sys.stderr.isatty():
                    print(f"{stored:>8,} stored", flush=True)
            elif time.monotonic() - moved > STALLED:
                raise Stalled(f"{stored} of {settings.count} messages are stored, and no more since {STALLED:g} s")


async def run(messages: int, consumers: int) -> int:
    with azurite.running() as service:
        shared = {
            "AZURE_STORAGE_CONNECTION_STRING": service.connection_string,
            "AZURE_QUEUE_NAME": "demo",
            "AZURE_TABLE_NAME": "demo",
        }
        settings = ReportSettings(
            storage_connection_string=service.connection_string, queue_name="demo", table_name="demo", count=messages
        )
        print(f"Azurite: queue {service.queue_endpoint}, table {service.table_endpoint}")
        print(f"1 producer, {messages:,} messages, {consumers} consumers")
        async with Storage(settings) as storage:
            table = await storage.table(settings)
            await table.create_table()
            with programs(shared) as started:
                for number in range(1, consumers + 1):
                    started.start(f"consumer-{number}", "aqs-consumer.py")
                producer = started.start("producer", "aqs-producer.py", EDW_COUNT=str(messages), EDW_RATE="0")
                try:
                    await all_stored(storage, settings, producer)
                except Stalled as error:
                    print(error, file=sys.stderr)
                started.stop()
                failures = started.failures()
            result = await report.examine(
                await storage.queue(settings.queue_name),
                await storage.queue(settings.poison_queue_name),
                table,
                messages,
            )
        print(result)
        for failure in failures:
            print(failure, file=sys.stderr)
        return 0 if result.is_exact and not failures else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=_positive, default=2000, help="messages to send (default 2000)")
    parser.add_argument("--consumers", type=_positive, default=2, help="consumer processes (default 2)")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    try:
        return asyncio.run(run(arguments.messages, arguments.consumers))
    except (azurite.AzuriteError, AzureError) as error:
        print(error, file=sys.stderr)
        return 1


def _positive(value: str) -> int:
    try:
        number: int = integer(1, 1_000_000)(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value!r} {error}") from None
    return number


def _interrupted(*_: object) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # cleaning up is under way, and takes seconds at most
    print("interrupted, stopping", file=sys.stderr)
    sys.exit(130)


if __name__ == "__main__":
    sys.exit(main())
