"""In-memory stand-ins for queue and table, with the services' own rules for leases and keys."""

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from edw.errors import LeaseLost
from edw.lease import Lease
from edw.queue import Delivery


@dataclass
class Waiting:
    """A message in the queue."""

    content: str
    message_id: str = field(default_factory=lambda: str(uuid4()))
    dequeue_count: int = 0
    visible_at: float = 0.0
    pop_receipt: str = ""


@dataclass
class Faults:
    """Errors to raise instead of doing what is asked, by operation; each is raised once."""

    planned: dict[str, list[Exception]] = field(default_factory=dict)

    def plan(self, operation: str, *errors: Exception) -> None:
        self.planned.setdefault(operation, []).extend(errors)

    def strike(self, operation: str) -> None:
        if self.planned.get(operation):
            raise self.planned[operation].pop(0)


class StandInQueue:
    """Has the methods of edw.queue.Queue."""

    def __init__(self, *contents: str, name: str = "work") -> None:
        self.name = name
        self.waiting = [Waiting(content) for content in contents]
        self.faults = Faults()
        self.pages: list[tuple[int, int]] = []
        """Asked for and got, of every receive."""
        self.renewals = 0
        self.on_receive: Callable[[], None] = lambda: None
        self.time_to_live: list[int | None] = []
        self.send_takes = 0.0
        self.sending = self.most_sending = 0
        self._receipts = itertools.count(1)

    async def create(self) -> bool:
        self.faults.strike("create")
        return True

    async def length(self) -> int:
        self.faults.strike("length")
        return len(self.waiting)

    async def receive(self, at_most: int, visibility_timeout: int) -> list[Delivery]:
        asked_at = time.monotonic()
        await asyncio.sleep(0)
        self.on_receive()
        self.faults.strike("receive")
        page = []
        for message in [message for message in self.waiting if message.visible_at <= asked_at][:at_most]:
            message.dequeue_count += 1
            message.visible_at = asked_at + visibility_timeout
            message.pop_receipt = f"receipt-{next(self._receipts)}"
            page.append(
                Delivery(
                    message.message_id,
                    message.content,
                    message.dequeue_count,
                    datetime.now(UTC),
                    datetime.now(UTC) + timedelta(days=7),
                    Lease(message.pop_receipt, asked_at + visibility_timeout),
                )
            )
        self.pages.append((at_most, len(page)))
        return page

    async def delete(self, delivery: Delivery) -> None:
        await asyncio.sleep(0)
        self.faults.strike("delete")
        self.waiting.remove(self._leased(delivery))

    async def probe(self) -> None:
        self.faults.strike("probe")

    async def renew(self, delivery: Delivery, visibility_timeout: int) -> None:
        asked_at = time.monotonic()
        await asyncio.sleep(0)
        self.renewals += 1
        self.faults.strike("renew")
        message = self._leased(delivery)
        message.visible_at = asked_at + visibility_timeout
        message.pop_receipt = f"receipt-{next(self._receipts)}"
        delivery.lease.renew(message.pop_receipt, message.visible_at)

    async def release(self, delivery: Delivery, after: int = 0) -> None:
        self.faults.strike("release")
        message = self._leased(delivery)
        message.visible_at = time.monotonic() + after
        message.pop_receipt = f"receipt-{next(self._receipts)}"

    async def send(self, content: str, time_to_live: int | None = None) -> None:
        await asyncio.sleep(0)
        self.sending += 1
        self.most_sending = max(self.most_sending, self.sending)
        await asyncio.sleep(self.send_takes)
        self.sending -= 1
        self.faults.strike("send")
        self.waiting.append(Waiting(content))
        self.time_to_live.append(time_to_live)

    def _leased(self, delivery: Delivery) -> Waiting:
        for message in self.waiting:
            if message.message_id == delivery.message_id and message.pop_receipt == delivery.lease.pop_receipt:
                return message
        raise LeaseLost("404 MessageNotFound")


class StandInTable:
    """Has the methods of edw.table.Table."""

    def __init__(self, name: str = "results") -> None:
        self.name = name
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        self.faults = Faults()
        self.lookups = 0
        self.gate = asyncio.Event()
        """Inserts wait for it: cleared, they hang."""
        self.gate.set()
        self.inserting = 0

    async def create(self) -> bool:
        return True

    async def insert(self, entity: dict[str, Any]) -> bool:
        self.inserting += 1
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
        finally:
            self.inserting -= 1
        self.faults.strike("insert")
        keys = (entity["PartitionKey"], entity["RowKey"])
        if keys in self.rows:
            return False
        self.rows[keys] = entity
        return True

    async def probe(self) -> None:
        self.faults.strike("probe")

    async def keep_one(self, message_id: str) -> bool:
        self.lookups += 1
        found = sorted(keys for keys in self.rows if keys[0] == message_id)
        for keys in found[1:]:
            del self.rows[keys]
        return bool(found)
