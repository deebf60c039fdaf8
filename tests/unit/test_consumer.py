"""What the consumer does with messages, pages, leases and a stop; queue and table are stand-ins."""

import asyncio
import itertools
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

import handler
from edw import consumer, entity, message
from edw.consumer import Consumer
from edw.errors import ContentRefused, LeaseLost, Rejected, Throttled, Unavailable
from edw.handling import Handler, Result
from edw.message import Message, Unprocessable
from edw.settings import ConsumerSettings
from edw.stop import Stop
from edw.worker import request_timeout
from standin import StandInQueue, StandInTable, Waiting


def good(msg: str = "hello", age: float = 0.0) -> str:
    return message.compose(msg, datetime.now(UTC) - timedelta(seconds=age))


class Workflow:
    """A consumer between a queue, a poison queue and a table."""

    def __init__(self, *contents: str, handle: Handler = handler.handle, **settings: Any) -> None:
        self.queue = StandInQueue(*contents)
        self.poison_queue = StandInQueue(name="work-poison")
        self.table = StandInTable()
        self.stop = Stop()
        known: dict[str, Any] = {
            "storage_account_name": "acct",
            "queue_name": "work",
            "table_name": "results",
            "poll_interval_min": 0.01,
            "poll_interval_max": 0.02,
            "drain": True,
        }
        self.settings = ConsumerSettings(**known | settings)
        self.consumer = Consumer(self.settings, self.queue, self.poison_queue, self.table, handle, self.stop)  # type: ignore[arg-type]  # stand-ins

    async def run(self) -> dict[str, int]:
        async with asyncio.timeout(10):
            await self.consumer.run()
        return self.consumer.tally.counts()

    async def table_of_another_consumer(self, message_id: str) -> None:
        """As if another consumer stored the message now."""
        self.table.rows[message_id, "9.000000"] = {"PartitionKey": message_id, "RowKey": "9.000000", "data": "hello"}

    def stored(self) -> list[str]:
        return sorted(entity.data(row) for row in self.table.rows.values())

    def poisoned(self) -> list[Any]:
        return [json.loads(waiting.content) for waiting in self.poison_queue.waiting]


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  conditions of many kinds, looked at from outside
            await asyncio.sleep(0.001)


async def test_every_message_is_stored_once_and_then_deleted() -> None:
    flow = Workflow(*(good(str(number)) for number in range(100)))
    counts = await flow.run()
    assert flow.stored() == sorted(str(number) for number in range(100))
    assert flow.queue.waiting == []
    assert counts["received"] == counts["stored"] == 100


async def test_the_key_is_the_queues_message_id_and_the_time_from_the_source_stamp() -> None:
    flow = Workflow(good(age=2.0))
    message_id = flow.queue.waiting[0].message_id
    await flow.run()
    (keys, row), *_ = flow.table.rows.items()
    assert keys[0] == message_id
    assert 2.0 <= row["messageProcessingTime"] < 12.0
    assert keys[1] == f"{row['messageProcessingTime']:.6f}"


async def test_base64_messages_are_decoded_when_the_settings_say_so() -> None:
    flow = Workflow(message.encode(good("über"), "base64"), message_encoding="base64")
    await flow.run()
    assert flow.stored() == ["über"]


async def test_a_message_stored_by_a_consumer_that_crashed_before_deleting_is_only_deleted() -> None:
    flow = Workflow(good())
    waiting = flow.queue.waiting[0]
    waiting.dequeue_count = 1
    await flow.table.insert({"PartitionKey": waiting.message_id, "RowKey": "0.500000", "data": "hello"})
    counts = await flow.run()
    assert len(flow.table.rows) == 1
    assert flow.queue.waiting == []
    assert counts["already_stored"] == 1


async def test_a_first_delivery_is_not_looked_up() -> None:
    flow = Workflow(good())
    await flow.run()
    assert flow.table.lookups == 0


async def test_a_redelivered_message_that_is_not_stored_is_stored() -> None:
    flow = Workflow(good())
    flow.queue.waiting[0].dequeue_count = 2
    await flow.run()
    assert flow.stored() == ["hello"]


async def test_a_conflict_counts_as_stored() -> None:
    flow = Workflow(good())

    async def conflict(_: object) -> bool:
        return False

    flow.table.insert = conflict  # type: ignore[method-assign]
    counts = await flow.run()
    assert counts["already_stored"] == 1
    assert flow.queue.waiting == []


@pytest.mark.parametrize("content", ["", "not json", "[]", '{"msg": 1, "srcStamp": "2026-11-23 12:00:00"}'])
async def test_what_can_never_succeed_goes_to_the_poison_queue_whole_and_with_the_reason(content: str) -> None:
    flow = Workflow(good("before"), content, good("after"))
    message_id = flow.queue.waiting[1].message_id
    counts = await flow.run()
    (envelope,) = flow.poisoned()
    assert envelope["body"] == content
    assert envelope["reason"]
    assert envelope["messageId"] == message_id
    assert envelope["dequeueCount"] == 1
    assert {"insertedOn", "expiresOn", "poisonedOn", "consumer"} <= envelope.keys()
    assert flow.stored() == ["after", "before"]
    assert flow.queue.waiting == []
    assert counts["poisoned"] == 1


async def test_a_poison_message_never_expires() -> None:
    flow = Workflow("not json")
    await flow.run()
    assert flow.poison_queue.time_to_live == [-1]


async def test_poison_is_stored_before_it_is_deleted() -> None:
    flow = Workflow("not json")
    flow.queue.faults.plan("delete", Rejected("400"))
    await flow.run()
    assert len(flow.poison_queue.waiting) == len(flow.queue.waiting) == 1


async def test_what_an_envelope_would_make_too_large_is_stored_bare() -> None:
    content = '"' * 60_000
    flow = Workflow(content)
    await flow.run()
    assert flow.poison_queue.waiting[0].content == content


async def test_content_that_the_table_refuses_goes_to_the_poison_queue() -> None:
    flow = Workflow(good())
    flow.table.faults.plan("insert", ContentRefused("insert: 400 PropertyValueTooLarge: too large"))
    await flow.run()
    assert "PropertyValueTooLarge" in flow.poisoned()[0]["reason"]


async def test_a_message_delivered_too_often_goes_to_the_poison_queue() -> None:
    flow = Workflow(good("kills"), good("fine"), max_dequeue_count=3)
    flow.queue.waiting[0].dequeue_count = 3
    await flow.run()
    assert flow.poisoned()[0]["reason"] == "delivered 4 times without success"
    assert flow.poisoned()[0]["dequeueCount"] == 4
    assert flow.stored() == ["fine"]


async def test_what_is_wrong_with_a_message_is_a_better_reason_than_how_often_it_was_delivered() -> None:
    flow = Workflow("not json", max_dequeue_count=3)
    flow.queue.waiting[0].dequeue_count = 9
    await flow.run()
    assert flow.poisoned()[0]["reason"].startswith("not JSON")


async def test_the_last_delivery_that_is_allowed_is_tried() -> None:
    flow = Workflow(good(), max_dequeue_count=3)
    flow.queue.waiting[0].dequeue_count = 2
    await flow.run()
    assert flow.stored() == ["hello"]


async def test_a_message_delivered_too_often_that_was_stored_is_not_poison() -> None:
    flow = Workflow(good(), max_dequeue_count=3)
    waiting = flow.queue.waiting[0]
    waiting.dequeue_count = 9
    await flow.table.insert({"PartitionKey": waiting.message_id, "RowKey": "0.500000"})
    await flow.run()
    assert flow.poisoned() == []
    assert flow.queue.waiting == []


async def test_one_messages_failure_delays_that_message_alone() -> None:
    flow = Workflow(good("1"), good("2"), good("3"))
    flow.table.faults.plan("insert", RuntimeError("a fault in the program"))
    with capture_logs() as logs:
        counts = await flow.run()
    assert len(flow.stored()) == 2
    assert counts["released"] == 1
    (left,) = flow.queue.waiting
    assert left.visible_at > time.monotonic()
    assert any(entry["log_level"] == "error" for entry in logs)


async def test_a_request_that_the_table_rejects_delays_the_message_and_needs_no_traceback() -> None:
    flow = Workflow(good())
    flow.table.faults.plan("insert", Rejected("insert: 400 InvalidHeaderValue"))
    with capture_logs() as logs:
        await flow.run()
    assert flow.queue.waiting[0].visible_at > time.monotonic()
    assert [entry["exc_info"] for entry in logs if entry["event"] == "message failed"] == [None]


async def test_a_passing_fault_of_the_table_is_ridden_out() -> None:
    flow = Workflow(good())
    flow.table.faults.plan("insert", Unavailable("503", "ServerBusy"), Unavailable("503", "ServerBusy"))
    counts = await flow.run()
    assert flow.stored() == ["hello"]
    assert counts["received"] == 1


async def test_a_message_that_went_to_another_consumer_is_not_deleted() -> None:
    flow = Workflow(good(), drain=False)
    flow.table.gate.clear()
    running = asyncio.create_task(flow.run())
    await until(lambda: flow.table.inserting)
    flow.stop.set()
    # The insert was slow: by the time it is done, the message has been given to somebody else.
    flow.queue.waiting[0].pop_receipt = "of another consumer"
    flow.table.gate.set()
    counts = await running
    assert counts["lease_lost"] == 1
    assert flow.queue.waiting[0].pop_receipt == "of another consumer"


def leased_for(flow: Workflow, seconds: float) -> None:
    """From now on the queue's leases end that many seconds after the message was received."""
    receive = flow.queue.receive

    async def short(at_most: int, visibility_timeout: int) -> list[Any]:
        page = await receive(at_most, visibility_timeout)
        for delivery in page:
            delivery.lease.ends = time.monotonic() + seconds
        return page

    flow.queue.receive = short  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("content", "dequeue_count"), [(good(), 0), (good(), 1), ("not json", 0)], ids=["first", "second", "not json"]
)
async def test_nothing_is_begun_on_a_lease_that_could_end_first(content: str, dequeue_count: int) -> None:
    flow = Workflow(content)
    flow.queue.waiting[0].dequeue_count = dequeue_count
    leased_for(flow, 2 * request_timeout(flow.settings) - 0.1)
    counts = await flow.run()
    assert flow.stored() == []
    assert flow.table.lookups == 0
    assert flow.poisoned() == []
    assert len(flow.queue.waiting) == 1
    assert counts["lease_lost"] == 1


async def test_a_message_whose_lease_ran_down_while_it_was_stored_is_not_deleted() -> None:
    flow = Workflow(good())
    needed = 2 * request_timeout(flow.settings)
    leased_for(flow, needed + 0.5)
    insert = flow.table.insert

    async def slow(row: dict[str, Any]) -> bool:
        await asyncio.sleep(0.6)
        return await insert(row)

    flow.table.insert = slow  # type: ignore[method-assign]
    counts = await flow.run()
    assert len(flow.queue.waiting) == 1
    assert (counts["stored"], counts["lease_lost"]) == (1, 1)


async def test_nothing_is_repeated_on_a_lease_that_could_end_first() -> None:
    flow = Workflow(good(), visibility_timeout=600, drain=False)
    needed = 2 * request_timeout(flow.settings)
    leased_for(flow, needed + 1)
    attempts: list[float] = []

    async def unavailable(_: object) -> bool:
        attempts.append(time.monotonic())
        raise Unavailable("insert: 503 ServerBusy", "ServerBusy")

    flow.table.insert = unavailable  # type: ignore[method-assign]
    began = time.monotonic()
    running = asyncio.create_task(flow.run())
    await until(lambda: len(attempts) > 1 and not flow.consumer._working)
    flow.stop.set()
    await running
    # One second, and some for a slow machine: far from the lease's end, after which another could have it.
    assert max(attempts) - began < 1 + needed / 2


async def test_a_message_whose_insert_had_no_answer_is_not_given_back_before_that_is_over() -> None:
    flow = Workflow(good(), drain=False, stop_timeout=0.2)
    attempts = 0

    async def unavailable(_: object) -> bool:
        nonlocal attempts
        attempts += 1
        flow.stop.set()
        raise Unavailable("insert: no answer within 10 s", "Timeout")

    flow.table.insert = unavailable  # type: ignore[method-assign]
    counts = await flow.run()
    assert attempts >= 1
    assert counts["released"] == 1
    wait = flow.queue.waiting[0].visible_at - time.monotonic()
    assert 2 * request_timeout(flow.settings) - 1 < wait < flow.settings.visibility_timeout - 10


async def test_nothing_new_is_taken_while_the_table_is_down() -> None:
    flow = Workflow(good("1"), concurrency=2, drain=False)
    insert, is_down, tried = flow.table.insert, True, 0

    async def sometimes(row: dict[str, Any]) -> bool:
        nonlocal tried
        tried += 1
        if is_down:
            raise Unavailable("insert: 503 ServerBusy", "ServerBusy")
        return await insert(row)

    async def look() -> None:
        if is_down:
            raise Unavailable("look up: 503 ServerBusy", "ServerBusy")

    flow.table.insert = sometimes  # type: ignore[method-assign]
    flow.table.probe = look  # type: ignore[method-assign]
    running = asyncio.create_task(flow.run())
    await until(lambda: flow.consumer.tally.received == 1 and tried > 2)
    assert not flow.consumer.is_ready
    flow.queue.waiting.append(Waiting(good("2")))
    await until(lambda: tried > 4)
    assert flow.consumer.tally.received == 1
    is_down = False
    await until(lambda: flow.stored() == ["1", "2"])
    await until(lambda: flow.consumer.is_ready)
    flow.stop.set()
    await running


async def test_a_stop_while_all_are_busy_takes_nothing_new() -> None:
    flow = Workflow(*(good() for _ in range(6)), concurrency=2, drain=False)
    flow.table.gate.clear()
    running = asyncio.create_task(flow.run())
    await until(lambda: flow.table.inserting == 2)
    flow.stop.set()
    flow.table.gate.set()
    counts = await running
    assert counts["received"] == counts["stored"] == 2
    assert [waiting.dequeue_count for waiting in flow.queue.waiting] == [0, 0, 0, 0]


async def test_a_fault_of_the_program_ends_neither_the_consumer_nor_the_work_on_others() -> None:
    flow = Workflow(*(good(str(number)) for number in range(5)))
    flow.table.faults.plan("insert", OSError("a fault"))
    flow.queue.faults.plan("release", OSError("the same fault"))
    await flow.run()
    assert len(flow.stored()) == 4


async def test_the_wait_of_a_failing_message_is_a_minute_at_most() -> None:
    flow = Workflow(good(), max_dequeue_count=1000)
    flow.queue.waiting[0].dequeue_count = 100
    flow.table.faults.plan("insert", Rejected("400"))
    await flow.run()
    assert flow.queue.waiting[0].visible_at < time.monotonic() + 61


async def test_no_more_is_fetched_than_can_be_started_at_once() -> None:
    flow = Workflow(*(good() for _ in range(50)), concurrency=10, drain=False)
    flow.table.gate.clear()
    running = asyncio.create_task(flow.run())
    await until(lambda: flow.table.inserting == 10)
    received = sum(got for _, got in flow.queue.pages)
    await asyncio.sleep(0.05)  # several polls' worth
    assert received == sum(got for _, got in flow.queue.pages) == 10
    flow.table.gate.set()
    flow.stop.set()
    await running


async def test_a_few_slow_messages_leave_the_rest_of_the_concurrency_to_others() -> None:
    flow = Workflow(*(good(str(number)) for number in range(60)), concurrency=4, drain=False)
    insert, slow = flow.table.insert, asyncio.Event()

    async def sometimes_slow(row: dict[str, Any]) -> bool:
        if row["data"] in ("0", "1", "2"):
            await slow.wait()
        return await insert(row)

    flow.table.insert = sometimes_slow  # type: ignore[method-assign]
    running = asyncio.create_task(flow.run())
    await until(lambda: len(flow.table.rows) == 57)
    slow.set()
    await until(lambda: len(flow.table.rows) == 60)
    flow.stop.set()
    await running


async def test_pages_are_full_under_load() -> None:
    flow = Workflow(*(good() for _ in range(640)))
    await flow.run()
    assert all(asked == 32 for asked, got in flow.queue.pages if got)
    assert len([got for _, got in flow.queue.pages if got]) == 20


async def test_a_receive_waits_for_the_room_of_a_whole_page() -> None:
    flow = Workflow(*(good() for _ in range(160)), poll_interval_min=60, poll_interval_max=60, drain=False)
    insert, allowed = flow.table.insert, asyncio.Semaphore(0)

    async def one_by_one(row: dict[str, Any]) -> bool:
        await allowed.acquire()
        return await insert(row)

    receive = flow.queue.receive

    async def overtaken(at_most: int, visibility_timeout: int) -> list[Any]:
        if len(flow.queue.pages) == 1:  # five of the first page are done while the second one is fetched
            for _ in range(5):
                allowed.release()
            await until(lambda: len(flow.consumer._working) == 27)
        return await receive(at_most, visibility_timeout)

    flow.table.insert = one_by_one  # type: ignore[method-assign]
    flow.queue.receive = overtaken  # type: ignore[method-assign]
    running = asyncio.create_task(flow.run())
    await until(lambda: len(flow.consumer._working) == 59)
    for _ in range(200):
        allowed.release()
    await until(lambda: not flow.queue.waiting)
    flow.stop.set()
    await running
    assert [page for page in flow.queue.pages if page[1]] == [(32, 32)] * 5


async def test_a_full_page_is_followed_by_the_next_one_without_waiting() -> None:
    flow = Workflow(*(good() for _ in range(320)), poll_interval_min=60, poll_interval_max=60, drain=False)
    running = asyncio.create_task(flow.run())
    await until(lambda: not flow.queue.waiting)
    flow.stop.set()
    await running


async def test_an_idle_consumer_polls_ever_less_often() -> None:
    flow = Workflow(poll_interval_min=0.02, poll_interval_max=0.16, drain=False)
    polls: list[float] = []
    flow.queue.on_receive = lambda: polls.append(time.monotonic())
    running = asyncio.create_task(flow.run())
    await until(lambda: len(polls) == 6)
    flow.stop.set()
    await running
    gaps = [later - earlier for earlier, later in itertools.pairwise(polls)]
    assert gaps[0] >= 0.015
    assert gaps[-1] >= 0.12


async def test_the_first_message_after_an_idle_time_makes_polls_frequent_again() -> None:
    flow = Workflow(poll_interval_min=0.01, poll_interval_max=60, drain=False)
    running = asyncio.create_task(flow.run())
    await until(lambda: len(flow.queue.pages) == 7)  # the next waits are 0.64 s, 1.28 s, 2.56 s …
    flow.queue.waiting.append(Waiting(good()))
    await until(flow.stored)
    await until(lambda: len(flow.queue.pages) >= 14)
    flow.stop.set()
    await running


async def test_drain_ends_only_when_nothing_is_in_flight() -> None:
    flow = Workflow(good())
    flow.table.gate.clear()
    running = asyncio.create_task(flow.run())
    await until(lambda: len(flow.queue.pages) > 3)
    assert not running.done()
    flow.table.gate.set()
    await running
    assert flow.stored() == ["hello"]


async def test_a_stop_finishes_what_is_in_flight_and_gives_back_what_is_not_started() -> None:
    flow = Workflow(*(good() for _ in range(4)), drain=False)
    flow.table.gate.clear()
    running = asyncio.create_task(flow.run())
    await until(lambda: flow.table.inserting == 4)
    flow.queue.waiting += [Waiting(good()) for _ in range(4)]
    flow.queue.on_receive = flow.stop.set  # the next page arrives after the stop
    await until(lambda: flow.consumer.tally.released == 4)
    flow.table.gate.set()
    counts = await running
    assert counts["received"] == 8
    assert len(flow.stored()) == counts["stored"] == 4
    assert len(flow.queue.waiting) == 4
    assert all(waiting.visible_at <= time.monotonic() for waiting in flow.queue.waiting)


async def test_a_clock_behind_the_producers_stores_no_negative_time_and_is_reported_once() -> None:
    flow = Workflow(good("1", age=-60), good("2", age=-60))
    with capture_logs() as logs:
        counts = await flow.run()
    assert [row["messageProcessingTime"] for row in flow.table.rows.values()] == [0.0, 0.0]
    assert all(row_key == "0.000000" for _, row_key in flow.table.rows)
    assert counts["clock_behind"] == 2
    assert len([entry for entry in logs if entry["event"].startswith("clock behind")]) == 1


async def test_ready_once_the_queue_answered() -> None:
    flow = Workflow()
    assert not flow.consumer.is_ready
    await flow.run()
    assert flow.consumer.is_ready


def test_a_pop_receipt_is_in_no_representation() -> None:
    async def deliver() -> str:
        queue = StandInQueue()
        queue.waiting.append(Waiting("content"))
        (delivery,) = await queue.receive(1, 30)
        return repr(delivery) + repr(delivery.lease)

    shown = asyncio.run(deliver())
    assert "receipt-1" not in shown
    assert "content" not in shown


async def test_the_handler_gets_the_message_and_what_it_returns_is_stored_with_it() -> None:
    seen: list[Message] = []

    async def handle(message: Message) -> Result:
        seen.append(message)
        return {"status": message.document["order"]["status"]}

    stamp = "2026-11-23T12:00:00Z"
    flow = Workflow(json.dumps({"msg": "hello", "srcStamp": stamp, "order": {"status": "new"}}), handle=handle)
    message_id = flow.queue.waiting[0].message_id
    await flow.run()
    (row,) = flow.table.rows.values()
    assert (row["status"], row["data"]) == ("new", "hello")
    assert (seen[0].id, seen[0].msg, seen[0].src_stamp) == (message_id, "hello", stamp)


async def test_handlers_that_are_synchronous_run_at_the_same_time_and_beside_the_event_loop() -> None:
    together = threading.Barrier(4, timeout=10)

    def handle(_: Message) -> Result:
        return {"place": together.wait()}

    flow = Workflow(*(good() for _ in range(4)), handle=handle, concurrency=4)
    await flow.run()
    assert len(flow.table.rows) == 4


async def test_what_a_handler_calls_unprocessable_goes_to_the_poison_queue_at_once() -> None:
    async def handle(_: Message) -> Result:
        raise Unprocessable("no such customer")

    flow = Workflow(good(), handle=handle)
    await flow.run()
    assert flow.poisoned()[0]["reason"] == "no such customer"
    assert flow.poisoned()[0]["dequeueCount"] == 1
    assert flow.queue.waiting == []
    assert flow.stored() == []


class Failing:
    """A handler that fails as often as it is told."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures = failures
        self.error = error
        self.calls = 0

    async def __call__(self, _: Message) -> Result:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return None

    async def handle(self, message: Message) -> Result:
        return await self(message)


@pytest.mark.parametrize(
    "error",
    [KeyError("card"), TimeoutError("their API"), OSError("their API"), ExceptionGroup("both", [ValueError("a")])],
)
async def test_a_handler_that_fails_is_called_again_after_a_growing_wait(error: Exception) -> None:
    failing = Failing(2, error)
    flow = Workflow(good(), handle=failing.handle)
    waits = []
    for _ in range(3):
        with capture_logs() as logs:
            await flow.run()
        for waiting in flow.queue.waiting:
            assert [entry["exc_info"] for entry in logs if entry["event"] == "message failed"] == [error]
            waits.append(waiting.visible_at - time.monotonic())
            waiting.visible_at = 0.0
    assert [round(wait) for wait in waits] == [2, 4]
    assert flow.stored() == ["hello"]
    assert failing.calls == 3


async def leave_early(_: Message) -> Result:
    raise SystemExit(3)


def leave_early_in_a_thread(_: Message) -> Result:
    raise SystemExit(3)


def find_nothing(_: Message) -> Result:
    return next(iter([]))


async def cancel(_: Message) -> Result:
    raise asyncio.CancelledError


@pytest.mark.parametrize("handle", [leave_early, leave_early_in_a_thread, find_nothing, cancel])
async def test_a_handler_that_would_end_more_than_its_message_has_failed(handle: Handler) -> None:
    flow = Workflow(good(), handle=handle)
    counts = await flow.run()
    assert counts["released"] == 1
    assert flow.queue.waiting[0].visible_at > time.monotonic() + 1


async def test_a_handler_that_fails_at_the_last_delivery_poisons_with_its_error_as_the_reason() -> None:
    flow = Workflow(good(), handle=Failing(99, ValueError("no card")).handle, max_dequeue_count=3)
    flow.queue.waiting[0].dequeue_count = 2
    with capture_logs() as logs:
        counts = await flow.run()
    assert flow.poisoned()[0]["reason"] == "failed at delivery 3: ValueError: no card"
    assert flow.queue.waiting == []
    assert (counts["poisoned"], counts["released"]) == (1, 0)
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["message failed"]


async def test_an_outage_at_the_last_delivery_does_not_poison() -> None:
    flow = Workflow(good(), max_dequeue_count=3)
    flow.queue.waiting[0].dequeue_count = 2
    flow.table.faults.plan("insert", *(Unavailable("503", "ServerBusy") for _ in range(3)))
    await flow.run()
    assert flow.poisoned() == []
    assert flow.stored() == ["hello"]


@pytest.mark.parametrize("error", [Unavailable("503", "ServerBusy"), LeaseLost("400 PopReceiptMismatch")])
async def test_neither_an_outage_nor_a_lost_lease_at_the_last_delivery_poisons(error: Exception) -> None:
    flow = Workflow(good(), drain=False, max_dequeue_count=3, stop_timeout=0.2)
    flow.queue.waiting[0].dequeue_count = 2

    async def fail(_: object) -> bool:
        flow.stop.set()
        raise error

    flow.table.insert = fail  # type: ignore[method-assign]
    counts = await flow.run()
    assert flow.poisoned() == []
    assert counts["lease_lost"] + counts["released"] == 1


async def test_a_result_that_cannot_be_stored_is_a_failure_of_the_message() -> None:
    async def handle(_: Message) -> Result:
        return {"RowKey": "mine"}

    flow = Workflow(good(), handle=handle)
    counts = await flow.run()
    assert counts["released"] == 1
    assert flow.stored() == []


class Slow:
    """A handler that waits until it is told to go on."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.handling = 0
        self.cancelled = 0

    async def handle(self, _: Message) -> Result:
        self.handling += 1
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return None


async def test_a_handler_slower_than_the_lease_keeps_its_message_and_stores_it_once() -> None:
    slow = Slow()
    flow = Workflow(good(), handle=slow.handle, visibility_timeout=1, drain=False)
    running = asyncio.create_task(flow.run())
    await until(lambda: flow.queue.renewals >= 5)
    slow.go_on.set()
    await until(lambda: not flow.queue.waiting)
    flow.stop.set()
    counts = await running
    assert slow.handling == counts["received"] == counts["stored"] == 1
    assert counts["renewed"] >= 5
    assert counts["lease_lost"] == 0


async def test_a_fast_message_is_not_renewed() -> None:
    flow = Workflow(*(good() for _ in range(100)))
    await flow.run()
    assert flow.queue.renewals == 0


async def test_a_renewal_that_fails_is_tried_again() -> None:
    slow = Slow()
    flow = Workflow(good(), handle=slow.handle, visibility_timeout=1, drain=False)
    flow.queue.faults.plan("renew", Unavailable("503", "ServerBusy"), Rejected("400"))
    running = asyncio.create_task(flow.run())
    await until(lambda: flow.consumer.tally.renewed)
    slow.go_on.set()
    await until(lambda: not flow.queue.waiting)
    flow.stop.set()
    await running
    assert len(flow.table.rows) == 1


async def test_a_handler_whose_lease_ends_is_cancelled_and_the_message_let_go_of_without_noise() -> None:
    slow = Slow()
    flow = Workflow(good(), handle=slow.handle, visibility_timeout=1, drain=False)
    flow.queue.faults.plan("renew", *(Unavailable("503", "ServerBusy") for _ in range(99)))
    flow.queue.on_receive = lambda: flow.stop.set() if slow.handling else None
    with capture_logs() as logs:
        running = asyncio.create_task(flow.run())
        await until(lambda: slow.cancelled)
        counts = await running
    assert flow.stored() == []
    assert (counts["lease_lost"], counts["stored"]) == (1, 0)
    assert {entry["event"] for entry in logs if entry["log_level"] in ("warning", "error")} == {
        "service unavailable, trying again"
    }


async def test_a_renewal_whose_answer_was_lost_costs_no_second_entity() -> None:
    slow = Slow()
    flow = Workflow(good(), handle=slow.handle, visibility_timeout=2, drain=False)
    flow.queue.faults.plan("renew", LeaseLost("400 PopReceiptMismatch"))
    running = asyncio.create_task(flow.run())
    await until(lambda: flow.queue.renewals)
    flow.queue.waiting[0].pop_receipt = "of the renewal without an answer"
    slow.go_on.set()
    await until(lambda: flow.consumer.tally.lease_lost)
    assert len(flow.table.rows) == 1
    await until(lambda: not flow.queue.waiting)  # delivered again, looked up, deleted
    flow.stop.set()
    counts = await running
    assert len(flow.table.rows) == slow.handling == 1
    assert counts["already_stored"] == 1


async def test_an_insert_that_comes_after_the_lease_leaves_one_entity_in_the_end() -> None:
    flow = Workflow(good(), visibility_timeout=1)
    flow.queue.faults.plan("renew", *(Unavailable("503", "ServerBusy") for _ in range(99)))
    insert = flow.table.insert
    message_id = flow.queue.waiting[0].message_id

    async def late(row: dict[str, Any]) -> bool:
        # As if the process had been frozen: the lease is over, and another consumer has stored the message.
        await flow.table_of_another_consumer(message_id)
        await asyncio.sleep(1)
        return await insert(row)

    flow.table.insert = late  # type: ignore[method-assign]
    await flow.run()
    assert len(flow.table.rows) == 1


async def test_two_deliveries_that_store_at_the_same_moment_leave_one_entity() -> None:
    flow = Workflow(good())
    flow.queue.waiting[0].dequeue_count = 1
    message_id, insert = flow.queue.waiting[0].message_id, flow.table.insert

    async def overtaken(row: dict[str, Any]) -> bool:
        await flow.table_of_another_consumer(message_id)  # after the look-up of this one
        return await insert(row)

    flow.table.insert = overtaken  # type: ignore[method-assign]
    await flow.run()
    assert len(flow.table.rows) == 1


async def test_a_message_that_kills_its_process_takes_few_others_along() -> None:
    """On its last two deliveries it is worked on by itself, once before and once after any other of its page."""
    orders: list[list[str]] = []
    contents = [good(str(number)) for number in range(20)]
    ids = [str(uuid4()) for _ in contents]
    for dequeue_count in (3, 4):
        order: list[str] = []
        alone = asyncio.Lock()

        async def handle(message: Message, order: list[str] = order, alone: asyncio.Lock = alone) -> Result:
            assert not alone.locked()
            async with alone:
                order.append(message.msg)
                await asyncio.sleep(0.001)
            return None

        flow = Workflow(*contents, handle=handle)
        for waiting, message_id in zip(flow.queue.waiting, ids, strict=True):
            waiting.message_id, waiting.dequeue_count = message_id, dequeue_count
        await flow.run()
        assert len(flow.table.rows) == 20
        orders.append(order)
    assert orders[0] == orders[1][::-1]


async def test_what_waits_for_its_turn_keeps_its_lease() -> None:
    slow = Slow()
    flow = Workflow(good(), good(), handle=slow.handle, visibility_timeout=1, drain=False)
    for waiting in flow.queue.waiting:
        waiting.dequeue_count = 3
    running = asyncio.create_task(flow.run())
    await until(lambda: flow.queue.renewals >= 6)
    assert slow.handling == 1
    slow.go_on.set()
    await until(lambda: not flow.queue.waiting)
    flow.stop.set()
    counts = await running
    assert (counts["received"], counts["stored"]) == (2, 2)


async def test_nothing_is_received_while_the_queue_does_not_answer() -> None:
    flow = Workflow(drain=False)
    flow.queue.faults.plan("receive", Unavailable("no answer within 10 s", "Timeout"))
    flow.queue.faults.plan("probe", *(Unavailable("no answer within 10 s", "Timeout") for _ in range(3)))
    received: list[int] = []
    flow.queue.on_receive = lambda: received.append(len(flow.queue.faults.planned["probe"]))
    running = asyncio.create_task(flow.run())
    await until(lambda: len(received) >= 2)
    flow.stop.set()
    await running
    assert received[:2] == [3, 0]


async def test_after_a_receive_without_an_answer_as_few_as_can_be_are_received() -> None:
    flow = Workflow(*(good() for _ in range(50)))
    flow.queue.faults.plan("receive", *(Unavailable("no answer within 10 s", "Timeout") for _ in range(2)))
    asked, receive = [], flow.queue.receive

    async def ask(at_most: int, visibility_timeout: int) -> list[Any]:
        asked.append(at_most)
        return await receive(at_most, visibility_timeout)

    flow.queue.receive = ask  # type: ignore[method-assign]
    await flow.run()
    assert asked[:4] == [32, 1, 1, 32]
    assert len(flow.table.rows) == 50


async def test_concurrency_shrinks_while_the_table_throttles_and_grows_back() -> None:
    flow = Workflow(*(good(str(number)) for number in range(300)), concurrency=32, drain=False)
    flow.table.faults.plan("insert", Throttled("insert: 503 ServerBusy", "ServerBusy"))
    running = asyncio.create_task(flow.run())
    await until(lambda: flow.consumer._worker.limit.now < 32)
    flow.queue.waiting += [Waiting(good()) for _ in range(1000)]
    await until(lambda: flow.consumer._worker.limit.now == 32)
    flow.stop.set()
    await running


async def test_a_stop_gives_work_its_time_and_then_gives_it_back() -> None:
    slow = Slow()
    flow = Workflow(good("slow"), handle=slow.handle, drain=False, stop_timeout=0.2)
    running = asyncio.create_task(flow.run())
    await until(lambda: slow.handling)
    began = time.monotonic()
    flow.stop.set()
    counts = await running
    assert time.monotonic() - began >= 0.2
    assert slow.cancelled == counts["released"] == 1
    assert flow.stored() == []
    assert flow.queue.waiting[0].visible_at <= time.monotonic()


async def test_a_stop_that_cuts_an_insert_off_does_not_give_the_message_back_at_once() -> None:
    flow = Workflow(good(), drain=False, stop_timeout=0.1)
    flow.table.gate.clear()
    running = asyncio.create_task(flow.run())
    await until(lambda: flow.table.inserting)
    flow.stop.set()
    counts = await running
    assert counts["released"] == 1
    assert flow.queue.waiting[0].visible_at > time.monotonic() + 2 * request_timeout(flow.settings) - 1


async def test_a_stop_gives_back_at_once_what_a_busy_table_has_refused() -> None:
    flow = Workflow(good(), drain=False, stop_timeout=0.2)

    async def busy(_: object) -> bool:
        flow.stop.set()
        raise Throttled("insert: 503 ServerBusy", "ServerBusy", is_refusal=True)

    flow.table.insert = busy  # type: ignore[method-assign]
    counts = await flow.run()
    assert counts["released"] == 1
    assert flow.queue.waiting[0].visible_at <= time.monotonic()


async def test_a_stop_lets_a_passing_fault_pass() -> None:
    flow = Workflow(good(), drain=False)

    async def failing_once(_: dict[str, Any]) -> bool:
        flow.table.insert = insert  # type: ignore[method-assign]
        flow.stop.set()
        raise Unavailable("insert: connection reset", "ServiceRequestError")

    insert, flow.table.insert = flow.table.insert, failing_once  # type: ignore[method-assign]
    await flow.run()
    assert flow.stored() == ["hello"]
    assert flow.queue.waiting == []


async def test_a_stop_gives_back_at_once_what_waits_for_its_turn() -> None:
    slow = Slow()
    flow = Workflow(*(good(str(number)) for number in range(5)), handle=slow.handle, drain=False)
    for waiting in flow.queue.waiting:
        waiting.dequeue_count = 3
    running = asyncio.create_task(flow.run())
    await until(lambda: slow.handling)
    flow.stop.set()
    slow.go_on.set()
    counts = await running
    assert (counts["stored"], counts["released"]) == (1, 4)
    assert all(waiting.visible_at <= time.monotonic() for waiting in flow.queue.waiting)


async def test_a_stop_gives_back_at_once_what_waits_for_a_slow_one() -> None:
    slow = Slow()
    flow = Workflow(*(good(str(number)) for number in range(5)), handle=slow.handle, drain=False, stop_timeout=60)
    for waiting in flow.queue.waiting:
        waiting.dequeue_count = 3
    running = asyncio.create_task(flow.run())
    await until(lambda: slow.handling)
    flow.stop.set()
    await until(lambda: flow.consumer.tally.released == 4)
    slow.go_on.set()
    counts = await running
    assert (counts["stored"], counts["released"]) == (1, 4)


async def test_a_stop_in_an_outage_gives_back_what_no_insert_was_tried_for() -> None:
    flow = Workflow(good(), drain=False, stop_timeout=0.2)
    flow.queue.waiting[0].dequeue_count = 1

    async def unavailable(_: str) -> bool:
        flow.stop.set()
        raise Unavailable("look up: 503 ServerBusy", "ServerBusy")

    flow.table.keep_one = unavailable  # type: ignore[method-assign]
    counts = await flow.run()
    assert counts["released"] == 1
    assert flow.queue.waiting[0].visible_at <= time.monotonic()


async def test_a_stop_ends_in_time_though_nothing_answers() -> None:
    flow = Workflow(good(), drain=False, stop_timeout=0.1, visibility_timeout=3600)

    async def no_answer(*_: object) -> None:
        await asyncio.Event().wait()

    for method in ("receive", "renew", "release"):
        setattr(flow.queue, method, no_answer)
    running = asyncio.create_task(flow.run())
    await asyncio.sleep(0)
    flow.stop.set()
    await running


async def test_giving_back_is_tried_again_when_the_queue_does_not_answer() -> None:
    flow = Workflow(good(), handle=Failing(1, ValueError("no card")).handle, drain=False)
    flow.queue.faults.plan("release", *(Unavailable("no answer", "Timeout") for _ in range(2)))
    running = asyncio.create_task(flow.run())
    await until(lambda: flow.consumer.tally.released)
    assert flow.queue.waiting[0].visible_at < time.monotonic() + 3
    flow.stop.set()
    await running


async def test_a_slow_message_on_its_last_deliveries_does_not_hold_up_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consumer, "ALONE", 0.05)
    slow = Slow()
    flow = Workflow(good(), good(), handle=slow.handle, drain=False)
    for waiting in flow.queue.waiting:
        waiting.dequeue_count = 3
    running = asyncio.create_task(flow.run())
    await until(lambda: slow.handling == 2)
    flow.queue.waiting.append(Waiting(good()))
    await until(lambda: slow.handling == 3)
    slow.go_on.set()
    await until(lambda: not flow.queue.waiting)
    flow.stop.set()
    await running
