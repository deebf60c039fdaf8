"""Handlers that are slow and handlers that fail, in consumers as users run them."""

import pytest

from faults import LEASE, Faults
from proxy import reset
from workflow import Workflow, eventually

SYNCHRONOUS = f"""
import time


def handle(message):
    time.sleep({LEASE + 1})
    return {{"length": len(message.msg)}}
"""
ASYNCHRONOUS = (
    SYNCHRONOUS.replace("import time", "import asyncio")
    .replace("def", "async def")
    .replace("time.sleep", "await asyncio.sleep")
)


@pytest.mark.parametrize("source", [SYNCHRONOUS, ASYNCHRONOUS], ids=["synchronous", "asynchronous"])
async def test_a_handler_slower_than_the_lease_stores_its_message_once(
    flow: Workflow, faults: Faults, source: str
) -> None:
    flow.handle_with(source)
    await flow.send("hello", "you")
    # The second one takes every message that the first one loses.
    consumers = [await flow.start("consumer", EDW_MAX_DEQUEUE_COUNT="1") for _ in range(2)]
    await flow.emptied()
    for consumer in consumers:
        assert await consumer.stopped() == 0
    assert sum(consumer.events("consumer stopped")[0]["received"] for consumer in consumers) == 2
    await flow.holds_exactly("hello", "you")
    assert sorted(row["length"].value for row in await flow.rows()) == [3, 5]
    assert faults.seen("insert") == 2


async def test_nothing_is_written_on_a_lease_that_could_end_first(flow: Workflow, faults: Faults) -> None:
    """The lease cannot be renewed, and the handler is done shortly before it ends."""
    flow.handle_with(f"import asyncio\n\n\nasync def handle(message):\n    await asyncio.sleep({0.8 * LEASE})\n")
    faults.breaks("update", reset)
    await flow.send("hello")
    consumer = await flow.start("consumer", EDW_LOG_LEVEL="debug")
    (lost,) = await eventually(lambda: consumer.events("lease lost, left to its next consumer"))
    assert "could end before" in lost["error"]
    assert await flow.rows() == []
    faults.mend()
    await flow.emptied()
    await flow.holds_exactly("hello")
    assert faults.seen("insert") == 1


FAILS = """
from edw.message import Unprocessable


async def handle(message):
    if message.msg == "unknown customer":
        raise Unprocessable("no such customer")
    if message.msg == "always fails":
        raise KeyError("card")
"""


async def test_a_handler_that_raises_holds_up_no_other_message(flow: Workflow) -> None:
    await flow.create()
    flow.handle_with(FAILS)
    fine = [f"message {number}" for number in range(50)]
    await flow.send(*fine[:25], "unknown customer", "always fails", *fine[25:])
    consumer = await flow.start("consumer", EDW_MAX_DEQUEUE_COUNT="2", EDW_POLL_INTERVAL_MAX="0.5")
    await eventually(lambda: flow.has_fewer_than(2))  # while the one that fails waits for another delivery
    await flow.holds_exactly(*fine)
    await flow.emptied()
    assert await consumer.stopped() == 0
    assert {envelope["reason"]: envelope["dequeueCount"] for envelope in await flow.envelopes()} == {
        "no such customer": 1,
        "failed at delivery 2: KeyError: 'card'": 2,
    }
    assert [line["error"] for line in consumer.events("message failed")] == ["KeyError: 'card'"] * 2
    await flow.holds_exactly(*fine)
