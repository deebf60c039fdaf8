"""Consumers that are killed, or frozen, at any instant and at the worst ones."""

import asyncio
import os
import random
import signal

import pytest
from aiohttp import web

from faults import LEASE, Faults
from proxy import Exchange, hold
from workflow import Workflow, eventually

MESSAGES = [f"message {number}" for number in range(2000)]


@pytest.mark.timeout(180)
async def test_consumers_killed_again_and_again_store_every_message_once(flow_of_its_own: Workflow) -> None:
    flow = flow_of_its_own
    seed = int(os.environ.get("SEED") or random.randrange(2**32))
    print(f"repeat with SEED={seed}")  # shown where the test fails
    chance = random.Random(seed)
    await flow.create()
    await flow.send(*MESSAGES)
    # A kill is a delivery of all that the process held: many kills are no fault of the messages.
    settings = {"EDW_VISIBILITY_TIMEOUT": str(LEASE), "EDW_MAX_DEQUEUE_COUNT": "1000", "EDW_CONCURRENCY": "32"}
    consumers = [await flow.start("consumer", **settings) for _ in range(3)]
    kills = 0
    while await flow.left():
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        place = chance.randrange(3)
        if kills < 15:
            kills += 1
            await consumers[place].kill()
            consumers[place] = await flow.start("consumer", **settings)
    assert kills >= 10
    await flow.holds_exactly(*MESSAGES)
    assert await flow.poisoned() == []


async def test_a_consumer_killed_between_insert_and_delete_leaves_one_entity(flow: Workflow, faults: Faults) -> None:
    await flow.send("hello")
    faults.breaks("insert", hold(asyncio.Event()))
    consumer = await flow.start("consumer")
    await eventually(flow.rows)  # stored, and the consumer does not know yet
    await consumer.kill()
    faults.mend()
    await flow.start("consumer")
    await flow.emptied()
    await flow.holds_exactly("hello")
    assert faults.seen("insert") == 1


async def test_a_consumer_killed_between_poison_put_and_delete_doubles_rather_than_loses(
    flow: Workflow, faults: Faults
) -> None:
    await flow.put("not json")
    faults.breaks(f"send {flow.settings.poison_queue_name}", hold(asyncio.Event()))
    consumer = await flow.start("consumer")
    await eventually(flow.poison_left)
    assert await flow.left() == 1
    await consumer.kill()
    faults.mend()
    await flow.start("consumer")
    await flow.emptied()
    assert len(await flow.poisoned()) == 2
    await flow.holds_exactly()


async def test_a_consumer_killed_before_it_knows_of_its_delete_leaves_nothing_behind(
    flow: Workflow, faults: Faults
) -> None:
    await flow.send("hello")
    faults.breaks("delete", hold(asyncio.Event()))
    consumer = await flow.start("consumer")
    await flow.emptied()
    await consumer.kill()
    faults.mend()
    await flow.holds_exactly("hello")


KILLS_ITS_PROCESS = """
import os
import signal


async def handle(message):
    if message.msg == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.timeout(120)
async def test_a_message_that_kills_its_process_ends_as_poison_and_those_around_it_are_stored(flow: Workflow) -> None:
    await flow.create()
    around = [f"message {number}" for number in range(40)]
    await flow.send(*around[:20], "deadly", *around[20:])
    flow.handle_with(KILLS_ITS_PROCESS)
    settings = {"EDW_VISIBILITY_TIMEOUT": str(LEASE), "EDW_MAX_DEQUEUE_COUNT": "3", "EDW_POLL_INTERVAL_MAX": "0.5"}
    deaths = 0
    while await flow.left():
        consumer = await flow.start("consumer", **settings)
        await eventually(lambda consumer=consumer: consumer.process.returncode is not None or flow.is_empty())  # type: ignore[misc]
        if consumer.process.returncode is not None:
            deaths += 1
    assert deaths == 3
    await flow.holds_exactly(*around)
    (envelope,) = await flow.envelopes()
    assert envelope["reason"] == "delivered 4 times without success"
    assert "deadly" in envelope["body"]


WAITS_FOR_A_FILE = """
import asyncio
from pathlib import Path

GO_ON, BEGUN = Path(__file__).parent / "go-on", Path(__file__).parent / "begun"


async def handle(message):
    BEGUN.touch()
    while not GO_ON.exists():
        await asyncio.sleep(0.02)
"""


async def test_two_consumers_with_the_same_message_store_it_once(flow: Workflow) -> None:
    """The first is frozen for longer than its lease; when it thaws, the second has stored the message."""
    await flow.create()
    await flow.send("hello")
    flow.handle_with(WAITS_FOR_A_FILE)
    frozen = await flow.start("consumer", EDW_VISIBILITY_TIMEOUT=str(LEASE))
    await eventually((flow.app / "begun").exists)
    frozen.process.send_signal(signal.SIGSTOP)
    (flow.app / "go-on").touch()
    await flow.start("consumer", EDW_VISIBILITY_TIMEOUT=str(LEASE), EDW_POLL_INTERVAL_MAX="0.5")
    await flow.emptied()
    frozen.process.send_signal(signal.SIGCONT)
    assert await frozen.stopped() == 0
    (last,) = frozen.events("consumer stopped")
    assert (last["lease_lost"], last["stored"]) == (1, 0)
    assert {line["event"] for line in frozen.log() if line["level"] != "info"} == {
        "event loop stood still, no lease could be renewed"
    }
    await flow.holds_exactly("hello")


async def test_an_insert_that_arrives_after_the_next_delivery_was_stored_is_taken_back(
    flow: Workflow, faults: Faults
) -> None:
    """The worst instant to be frozen: the insert is checked against the lease, and not yet sent."""
    await flow.send("hello")
    arrived, thaw = asyncio.Event(), asyncio.Event()

    async def freeze(exchange: Exchange) -> web.Response:
        arrived.set()
        await thaw.wait()
        return (await exchange.forward()).response()

    faults.breaks("insert", freeze, times=1)
    frozen = await flow.start("consumer")
    await arrived.wait()
    frozen.process.send_signal(signal.SIGSTOP)
    await flow.start("consumer")
    await flow.emptied()
    thaw.set()
    frozen.process.send_signal(signal.SIGCONT)
    await eventually(lambda: faults.seen("remove") == 1)
    await frozen.stopped()
    await flow.holds_exactly("hello")
