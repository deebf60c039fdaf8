"""Connections that are cut, slow, swallowed or closed while idle, and answers that are lost on the way."""

import asyncio

import pytest

from faults import LEASE, Faults
from proxy import Fault, black_hole, delay, lose_answer, reset, truncate
from workflow import Workflow, eventually

MESSAGES = [f"message {number}" for number in range(60)]


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [(reset, 1.0), (truncate, 1.0), (delay(0.3), 1.0), (black_hole, LEASE + 1.0)],
    ids=["reset", "truncated", "delayed", "black hole"],
)
async def test_connections_that_break_for_a_time_lose_and_double_nothing(
    flow: Workflow, faults: Faults, fault: Fault, seconds: float
) -> None:
    consumers = [await flow.start("consumer") for _ in range(2)]
    await flow.send(*MESSAGES[:30])
    await eventually(flow.rows)
    faults.breaks("", fault)
    await flow.send(*MESSAGES[30:])
    await asyncio.sleep(seconds)
    faults.mend()
    await flow.emptied()
    for consumer in consumers:
        assert await consumer.stopped() == 0
        assert not [line for line in consumer.log() if line["level"] == "error"]
    await flow.holds_exactly(*MESSAGES)
    assert await flow.poison_left() == 0


@pytest.mark.parametrize("operation", ["insert", "delete", "look up", "receive"])
async def test_answers_that_are_lost_after_the_service_did_the_work_lose_and_double_nothing(
    flow: Workflow, faults: Faults, operation: str
) -> None:
    faults.breaks(operation, lose_answer, times=3)
    await flow.send(*MESSAGES)
    await flow.put("not json")
    consumer = await flow.start("consumer")
    await flow.emptied()
    assert await consumer.stopped() == 0
    await flow.holds_exactly(*MESSAGES)
    assert await flow.poison_left() == 1
    assert not [line for line in consumer.log() if line["level"] == "error"]


async def test_receives_whose_answers_are_lost_again_and_again_poison_nothing(flow: Workflow, faults: Faults) -> None:
    """Each is a delivery of messages that nobody got."""
    faults.breaks("receive", lose_answer)
    await flow.send("one", "two", "three", "four", "five")
    await flow.start("consumer")
    await asyncio.sleep(4 * LEASE)
    faults.mend()
    await flow.emptied(within=50)
    await flow.holds_exactly("one", "two", "three", "four", "five")
    assert await flow.poison_left() == 0


async def test_a_renewal_whose_answer_is_lost_costs_a_delivery_and_no_entity(flow: Workflow, faults: Faults) -> None:
    await flow.send("hello")
    flow.handle_with(f"import asyncio\n\n\nasync def handle(message):\n    await asyncio.sleep({LEASE * 0.55})\n")
    faults.breaks("update", lose_answer, times=1)
    consumer = await flow.start("consumer")
    await flow.emptied()
    assert await consumer.stopped() == 0
    await flow.holds_exactly("hello")
    assert faults.seen("insert") == 1
    assert not [line for line in consumer.log() if line["level"] in ("warning", "error")]


async def test_a_poison_put_whose_answer_is_lost_doubles_rather_than_loses(flow: Workflow, faults: Faults) -> None:
    await flow.put("not json")
    faults.breaks(f"send {flow.settings.poison_queue_name}", lose_answer, times=1)
    await flow.start("consumer")
    await flow.emptied()
    assert [envelope["body"] for envelope in await flow.envelopes()] == ["not json"] * 2


async def test_a_send_whose_answer_is_lost_is_sent_again(flow: Workflow, faults: Faults) -> None:
    faults.breaks("send", lose_answer, times=3)
    producer = await flow.run("producer", "--count", "50", "--rate", "0")
    assert producer.process.returncode == 0
    (last,) = producer.events("producer stopped")
    assert (last["sent"], last["failed"]) == (50, 0)
    assert await flow.left() == 53  # at least once


async def test_a_connection_closed_while_idle_is_no_failure(flow: Workflow, faults: Faults) -> None:
    """Between a service or a load balancer that closes it and a client that has not heard of it."""
    consumer = await flow.start("consumer")
    for number in range(5):
        faults.breaks("receive", reset, times=1)
        faults.breaks("insert", reset, times=1)
        faults.breaks("delete", reset, times=1)
        await flow.send(f"message {number}")
        await flow.emptied()
    assert await consumer.stopped() == 0
    await flow.holds_exactly(*(f"message {number}" for number in range(5)))
    assert {line["level"] for line in consumer.log()} == {"info"}
    (last,) = consumer.events("consumer stopped")
    assert (last["lease_lost"], last["released"]) == (0, 0)
