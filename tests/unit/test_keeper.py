"""The keeping of leases."""

import asyncio
import time
from datetime import UTC, datetime

from edw.errors import LeaseLost, Unavailable
from edw.keeper import Keeper
from edw.lease import Lease
from edw.outage import Outage
from edw.queue import Delivery
from edw.stop import Stop
from edw.tally import Tally

LEASE = 1


class Queue:
    """Renews as its script says; what is not in it succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.renewals = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def renew(self, delivery: Delivery, visibility_timeout: int) -> None:
        self.renewals += 1
        asked_at = time.monotonic()
        await self.answers.wait()
        if self.errors:
            raise self.errors.pop(0)
        delivery.lease.renew(f"receipt-{self.renewals}", asked_at + visibility_timeout)


def delivered() -> Delivery:
    at = datetime.now(UTC)
    return Delivery("8f1c", "content", 1, at, at, Lease("receipt-0", time.monotonic() + LEASE))


def keeper_of(queue: Queue) -> Keeper:
    return Keeper(queue, Outage("queue", Stop()), LEASE, Tally())  # type: ignore[arg-type]  # a stand-in


async def renewed(queue: Queue, times: int) -> None:
    async with asyncio.timeout(10):
        while queue.renewals < times:  # noqa: ASYNC110  looked at from outside
            await asyncio.sleep(0.01)


async def test_who_lets_go_waits_for_the_renewal_under_way_and_has_its_pop_receipt() -> None:
    queue, delivery = Queue(), delivered()
    keeper = keeper_of(queue)
    async with keeper.running():
        queue.answers.clear()
        keeper.hold(delivery)
        await renewed(queue, 1)
        letting_go = asyncio.create_task(keeper.let_go(delivery))
        done, _ = await asyncio.wait([letting_go], timeout=0.05)
        assert not done
        queue.answers.set()
        await letting_go
        assert delivery.lease.pop_receipt == "receipt-1"


async def test_nothing_is_renewed_twice_at_the_same_time_nor_after_it_was_let_go_of() -> None:
    queue, delivery = Queue(), delivered()
    keeper = keeper_of(queue)
    async with keeper.running():
        queue.answers.clear()
        keeper.hold(delivery)
        await renewed(queue, 1)
        await asyncio.sleep(0.3 * LEASE)  # in which three more would begin
        assert queue.renewals == 1
        queue.answers.set()
        await keeper.let_go(delivery)
        delivery.lease.ends = time.monotonic()
        await asyncio.sleep(0.3 * LEASE)
        assert queue.renewals == 1


async def test_a_renewal_that_had_no_answer_is_tried_again_and_one_that_is_refused_is_not() -> None:
    queue = Queue(Unavailable("no answer", "Timeout"), LeaseLost("400 PopReceiptMismatch"))
    keeper, delivery = keeper_of(queue), delivered()
    ends = delivery.lease.ends
    async with keeper.running():
        keeper.hold(delivery)
        await renewed(queue, 2)
        await asyncio.sleep(0.3 * LEASE)
        assert queue.renewals == 2
        assert delivery.lease.ends == ends  # until then nobody else has it
