#!/usr/bin/env python3
"""Minutes of random faults, and the proof that nothing was lost or doubled and no memory grew.

    tools/soak.py --minutes 10

Consumers work while they are killed, frozen and restarted, while their connections break and while Azurite goes away
and comes back. Exit code 0 if every message is stored exactly once and memory stayed flat, 1 if not.
"""

import argparse
import asyncio
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from azure.storage.queue.aio import QueueClient
from yarl import URL

import azurite
import report
from azurite import Service
from demo import Programs, programs
from edw import message
from proxy import Fault, Proxy, black_hole, delay, lose_answer, refuse, reset, truncate

LEASE = 5
NAME = "soak"
DEEP = 300
"""Messages in the queue above which no more are sent: Azurite slows down with a deep queue."""
CALM_WITHIN = 120.0
GROWTH = 1.15
"""Of memory, from the second quarter of the run to the last: more is a leak."""

FAULTS: list[Fault] = [
    reset,
    truncate,
    lose_answer,
    black_hole,
    delay(1.0),
    delay(LEASE + 1.0),
    refuse(503, "ServerBusy"),
    refuse(500, "OperationTimedOut"),
    refuse(429, "TooManyRequests", Retry_After="1"),
]
OPERATIONS = ["", "insert", "look up", "receive", "update", "delete", "send"]


@dataclass
class Soak:
    """The state of one run. The first consumer is spared: its memory is watched from beginning to end."""

    chance: random.Random
    ends: float
    folder: Path
    service: Service
    azurite: ExitStack
    started: Programs
    proxies: list[Proxy]
    up: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while Azurite is down, and while messages are sent: what is sent is known to be there."""
    consumers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    not_json: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)

    async def feed(self, queue: QueueClient) -> None:
        while time.monotonic() < self.ends:
            async with self.up:
                if await report.length(queue) < DEEP:
                    for _ in range(32):
                        body = message.compose(f"message {len(self.sent)}", datetime.now(UTC))
                        self.sent.append((await queue.send_message(body)).id or "")
                    await queue.send_message("not json")
                    self.not_json += 1
            await asyncio.sleep(0.1)

    async def trouble(self) -> None:
        """One fault after the other; each is over before the next begins."""
        kinds = [self.kill, self.restart, self.freeze, self.break_connections, self.stop_azurite]
        while time.monotonic() < self.ends:
            await asyncio.sleep(self.chance.uniform(0.5, 3.0))
            kind = self.chance.choice(kinds)
            await kind()
            self.faults[kind.__name__.replace("_", " ")] += 1

    def start(self, place: int) -> None:
        name = f"consumer-{place}-{self.faults.total()}"
        self.consumers[place : place + 1] = [self.started.start(name, "aqs-consumer.py")]

    async def kill(self) -> None:
        place = self.chance.randrange(1, len(self.consumers))
        self.started.kill(self.consumers[place])
        self.start(place)

    async def restart(self) -> None:
        place = self.chance.randrange(1, len(self.consumers))
        self.consumers[place].terminate()
        await asyncio.to_thread(self.consumers[place].wait)
        self.start(place)

    async def freeze(self) -> None:
        process = self.chance.choice(self.consumers[1:])
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self.chance.uniform(0.5, 2.0) * LEASE)
        process.send_signal(signal.SIGCONT)

    async def break_connections(self) -> None:
        fault, operation = self.chance.choice(FAULTS), self.chance.choice(OPERATIONS)
        for proxy in self.proxies:
            proxy.breaks(operation, fault)
        await asyncio.sleep(self.chance.uniform(0.2, 1.5 * LEASE))
        for proxy in self.proxies:
            proxy.mend()

    async def stop_azurite(self) -> None:
        async with self.up:
            ports = [URL(endpoint).port or 0 for endpoint in (self.service.queue_endpoint, self.service.table_endpoint)]
            await asyncio.to_thread(self.azurite.close)  # which waits for connections through the proxies
            await asyncio.sleep(self.chance.uniform(0.5, 2.0) * LEASE)
            self.azurite.enter_context(azurite.running(*ports, data=self.folder))

    async def watch(self) -> None:
        """Samples the memory of the first consumer and says how far the run is."""
        while time.monotonic() < self.ends:
            self.memory.append(resident(self.consumers[0]))
            if len(self.memory) % 30 == 0:
                print(f"{len(self.sent):>8,} sent, {self.memory[-1] / 1024:.1f} MiB, {self.had()}", flush=True)
            await asyncio.sleep(1)

    def had(self) -> str:
        return ", ".join(f"{name} {times}" for name, times in sorted(self.faults.items())) or "no faults yet"


def resident(process: subprocess.Popen[bytes]) -> int:
    """KiB of memory that the process has now."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


async def run(minutes: float, consumers: int, seed: int) -> int:
    print(f"{minutes:g} minutes, {consumers} consumers, --seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="edw-soak-") as folder, ExitStack() as opened:
        service = opened.enter_context(azurite.running(data=Path(folder)))
        proxies = [Proxy(service.queue_endpoint), Proxy(service.table_endpoint)]
        async with proxies[0].listening() as queue_proxy, proxies[1].listening() as table_proxy:
            through = replace(service, queue_endpoint=queue_proxy.endpoint, table_endpoint=table_proxy.endpoint)
            environment = {
                "AZURE_STORAGE_CONNECTION_STRING": through.connection_string,
                "AZURE_QUEUE_NAME": NAME,
                "AZURE_TABLE_NAME": NAME,
                "EDW_VISIBILITY_TIMEOUT": str(LEASE),
                # Kills and freezes are deliveries, and no fault of the messages.
                "EDW_MAX_DEQUEUE_COUNT": "1000",
                "EDW_POLL_INTERVAL_MAX": "0.5",
            }
            with programs(environment) as started:
                ends = time.monotonic() + minutes * 60
                soak = Soak(random.Random(seed), ends, Path(folder), service, opened, started, proxies)
                return 0 if await holds(soak, consumers) else 1


async def holds(soak: Soak, consumers: int) -> bool:
    """Runs to the end; whether everything is as it should be then."""
    async with report.clients(soak.service.connection_string) as (queues, tables):
        queue, poison_queue = queues.get_queue_client(NAME), queues.get_queue_client(f"{NAME}-poison")
        table = tables.get_table_client(NAME)
        await asyncio.gather(queue.create_queue(), poison_queue.create_queue(), table.create_table())
        for place in range(consumers):
            soak.start(place)
        async with asyncio.TaskGroup() as tasks:
            for work in (soak.feed(queue), soak.trouble(), soak.watch()):
                tasks.create_task(work)
        async with asyncio.timeout(CALM_WITHIN):
            while await report.length(queue):  # noqa: ASYNC110  looked at from outside
                await asyncio.sleep(0.5)
        soak.started.stop()
        stored = Counter(await report.stored_ids(table))
        poisoned = await report.length(poison_queue)
    quarter = len(soak.memory) // 4
    before, after = (statistics.median(soak.memory[place * quarter :][: quarter or 1]) for place in (1, 3))
    print(f"{'sent':<16}{len(soak.sent):>9,}")
    print(f"{'lost':<16}{len(set(soak.sent) - stored.keys()):>9,}")
    print(f"{'doubled':<16}{sum(times - 1 for times in stored.values()):>9,}")
    print(f"{'poisoned':<16}{poisoned:>9,}   of {soak.not_json:,} to be poisoned; a lost answer doubles one")
    print(f"{'faults':<16}{soak.faults.total():>9,}   {soak.had()}")
    print(f"{'memory':<16}{after / 1024:>9.1f} MiB, {before / 1024:.1f} MiB in the second quarter")
    failures = soak.started.failures()
    for failure in failures:
        print(failure)
    is_exact = stored == Counter(soak.sent) and poisoned >= soak.not_json
    is_flat = after <= GROWTH * before
    print("every message is stored exactly once" if is_exact else "NOT every message is stored exactly once")
    print("memory is flat" if is_flat else "memory GROWS")
    return is_exact and is_flat and not failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long faults go on (default 5)")
    parser.add_argument("--consumers", type=int, default=3, help="consumer processes, at least 2 (default 3)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="repeats the order of faults")
    arguments = parser.parse_args()
    if arguments.consumers < 2 or arguments.minutes <= 0:
        parser.error("needs two consumers and some minutes")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    try:
        return asyncio.run(run(arguments.minutes, arguments.consumers, arguments.seed))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
