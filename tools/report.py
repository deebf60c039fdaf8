#!/usr/bin/env python3
"""What became of a numbered run of messages, seen from outside: what queue, poison queue and table hold.

    AZURE_QUEUE_NAME=work AZURE_TABLE_NAME=results … tools/report.py --count 2000

Exit code 0 if every message is stored exactly once and nothing is left over, 1 if not, 2 for wrong settings.
"""

import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from azure.core.exceptions import AzureError, ResourceNotFoundError
from azure.data.tables.aio import TableClient, TableServiceClient
from azure.storage.queue.aio import QueueClient, QueueServiceClient

sys.path.insert(0, str(Path(__file__).parent.parent / "app"))

from edw import entity, program
from edw.errors import translated
from edw.message import parse_stamp
from edw.option import integer, option
from edw.settings import WorkflowSettings
from edw.storage import API_VERSION, Storage
from edw.tally import percentiles


@dataclass(frozen=True, kw_only=True)
class ReportSettings(WorkflowSettings):
    """Compares the table with the messages that a producer sent with --count."""

    count: int = option("EDW_COUNT", "messages that were sent", integer(1, 1_000_000_000))


@dataclass(frozen=True)
class Report:
    """The figures of one run; `left` counts messages still in the queue, leased ones included."""

    sent: int
    stored: int
    lost: int
    doubled: int
    poisoned: int
    left: int
    per_second: float
    processing_time: dict[str, float | None]

    @property
    def is_exact(self) -> bool:
        """Whether every message is stored exactly once, and nothing else is there."""
        return self.stored == self.sent and not (self.lost or self.doubled or self.poisoned or self.left)

    def __str__(self) -> str:
        times = ", ".join(f"{name} {value:.3f} s" for name, value in self.processing_time.items() if value is not None)
        rows = {
            "sent": f"{self.sent:>8,}",
            "stored": f"{self.stored:>8,}",
            "lost": f"{self.lost:>8,}",
            "doubled": f"{self.doubled:>8,}",
            "poisoned": f"{self.poisoned:>8,}",
            "left in the queue": f"{self.left:>8,}",
            "messages a second": f"{self.per_second:>8,.0f}   first sent to last stored",
            "processing time": f"   {times}",
        }
        verdict = (
            "every message is stored exactly once" if self.is_exact else "NOT every message is stored exactly once"
        )
        return "\n".join([*(f"{name:<18}{value}" for name, value in rows.items()), verdict])


Clients = tuple[QueueServiceClient, TableServiceClient]


@asynccontextmanager
async def clients(connection_string: str, **options: Any) -> AsyncIterator[Clients]:
    """For a look from outside. They repeat their requests soon: Azurite closes idle connections, at times just
    when one is used."""
    given: dict[str, Any] = options | {"conn_str": connection_string, "api_version": API_VERSION, "retry_total": 5}
    async with (
        QueueServiceClient.from_connection_string(
            **given, initial_backoff=0.1, increment_base=1, random_jitter_range=0
        ) as queues,
        TableServiceClient.from_connection_string(**given, retry_backoff_factor=0.1) as tables,
    ):
        yield queues, tables


async def stored_ids(table: TableClient) -> list[str]:
    """The message id of every entity."""
    return [row["PartitionKey"] async for row in table.list_entities(select=["PartitionKey"])]


async def length(queue: QueueClient) -> int:
    """Messages in the queue, leased ones included; 0 where there is no queue."""
    try:
        return (await queue.get_queue_properties()).approximate_message_count or 0
    except ResourceNotFoundError:
        return 0


async def examine(queue: QueueClient, poison_queue: QueueClient, table: TableClient, sent: int) -> Report:
    """Compares what is stored with the messages `COUNT 1` to `COUNT sent`."""
    rows = [row async for row in table.list_entities()]
    found = Counter(entity.data(row) for row in rows)
    expected = {f"Scale Test Message : COUNT {number}" for number in range(1, sent + 1)}
    began = min((parse_stamp(row["srcStamp"]) for row in rows), default=datetime.now(UTC))
    ended = max((parse_stamp(row["dateStamp"]) for row in rows), default=began)
    seconds = (ended - began).total_seconds()
    return Report(
        sent=sent,
        stored=len(rows),
        lost=len(expected - found.keys()),
        doubled=sum(times - 1 for times in found.values()),
        poisoned=await length(poison_queue),
        left=await length(queue),
        per_second=len(rows) / seconds if seconds else 0.0,
        processing_time=percentiles([row["messageProcessingTime"] for row in rows]),
    )


async def run(settings: ReportSettings) -> int:
    async with Storage(settings) as storage:
        try:
            report = await examine(
                await storage.queue(settings.queue_name),
                await storage.queue(settings.poison_queue_name),
                await storage.table(settings),
                settings.count,
            )
        except AzureError as error:
            print(translated(error, "report"), file=sys.stderr)
            return program.FAILED
    print(report)
    return program.DONE if report.is_exact else program.FAILED


if __name__ == "__main__":
    sys.exit(program.main(ReportSettings, run))
