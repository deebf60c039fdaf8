"""Consumers that are asked to stop with work in flight."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from faults import Faults
from proxy import black_hole, refuse
from workflow import Workflow, eventually

IN_TIME = 10.0
"""Seconds: well inside the grace period of a pod, which is 30."""


def handler_of(kind: str, seconds: float) -> str:
    sleep = "time.sleep" if kind == "def" else "await asyncio.sleep"
    return f"import asyncio\nimport time\n\n\n{kind} handle(message):\n    {sleep}({seconds})\n"


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_stop_ends_in_time_and_what_is_not_stored_is_visible_at_once(flow: Workflow, kind: str) -> None:
    await flow.create()
    flow.handle_with(handler_of(kind, 60))
    await flow.send("slow", "slower")
    consumer = await flow.start("consumer", EDW_VISIBILITY_TIMEOUT="600", EDW_STOP_TIMEOUT="1")
    await eventually(lambda: flow.are_visible(0))
    began = time.monotonic()
    assert await consumer.stopped() == 0
    assert time.monotonic() - began < IN_TIME
    assert await flow.are_visible(2)
    assert consumer.events("consumer stopped")[0]["released"] == 2


async def test_a_stop_waits_for_work_that_ends_in_time(flow: Workflow) -> None:
    await flow.create()
    flow.handle_with(handler_of("def", 2))
    await flow.send("slow", "slower")
    consumer = await flow.start("consumer")
    await eventually(lambda: flow.are_visible(0))
    assert await consumer.stopped(signal.SIGINT) == 0
    await flow.holds_exactly("slow", "slower")
    assert await flow.left() == 0


async def test_a_rolling_restart_under_load_loses_and_doubles_nothing(flow_of_its_own: Workflow) -> None:
    flow = flow_of_its_own
    await flow.create()
    messages = [f"message {number}" for number in range(500)]
    await flow.send(*messages)
    for _ in range(10):
        consumer = await flow.start("consumer", EDW_VISIBILITY_TIMEOUT="600", EDW_CONCURRENCY="8")
        before = await flow.left()
        await eventually(lambda before=before: flow.has_fewer_than(before - 20))  # type: ignore[misc]
        began = time.monotonic()
        assert await consumer.stopped() == 0
        assert time.monotonic() - began < IN_TIME
        # Nothing waits for a lease to end: what is not stored can be had at once.
        assert await flow.are_visible(await flow.left())
    await flow.drained()
    await flow.holds_exactly(*messages)
    assert await flow.poison_left() == 0


IN_A_NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child"]


@pytest.mark.skipif(
    subprocess.run([*IN_A_NAMESPACE, "true"], capture_output=True, check=False).returncode != 0,
    reason="making a PID namespace needs root and unshare",
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_as_the_first_process_of_a_container_it_stops_too(flow: Workflow, number: signal.Signals) -> None:
    """The kernel keeps signals from a PID 1 that has no handler for them."""
    flow.launcher = IN_A_NAMESPACE
    consumer = await flow.start("consumer")
    await consumer.says("consumer started")
    parent = consumer.process.pid
    (child,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()  # noqa: ASYNC240
    assert Path(f"/proc/{child}/status").read_text().partition("NSpid:")[2].split("\n")[0].split()[-1] == "1"  # noqa: ASYNC240
    os.kill(int(child), number)
    assert await consumer.ended(IN_TIME) == 0
    assert consumer.events("consumer stopped")


async def test_a_stop_while_the_table_is_busy_ends_in_time_and_leaves_the_message_visible(
    flow: Workflow, faults: Faults
) -> None:
    await flow.send("hello")
    faults.breaks("insert", refuse(503, "ServerBusy"))
    consumer = await flow.start("consumer", EDW_VISIBILITY_TIMEOUT="600", EDW_STOP_TIMEOUT="1")
    await eventually(lambda: faults.seen("insert"))
    began = time.monotonic()
    assert await consumer.stopped() == 0
    assert time.monotonic() - began < IN_TIME
    assert await flow.are_visible(1)


async def test_a_stop_while_nothing_answers_ends_in_time(flow: Workflow, faults: Faults) -> None:
    await flow.send("hello")
    faults.breaks("insert", black_hole)
    consumer = await flow.start("consumer", EDW_VISIBILITY_TIMEOUT="600")
    await eventually(lambda: faults.seen("insert"))
    faults.breaks("", black_hole)
    began = time.monotonic()
    assert await consumer.stopped() == 0
    assert time.monotonic() - began < IN_TIME
    assert await flow.left() == 1


async def test_a_stop_while_an_insert_has_no_answer_leaves_the_message_visible_soon(
    flow: Workflow, faults: Faults
) -> None:
    """As soon as what may be under way in the service is over: not when the lease ends, in ten minutes."""
    await flow.send("hello")
    faults.breaks("insert", black_hole)
    consumer = await flow.start("consumer", EDW_VISIBILITY_TIMEOUT="600", EDW_STOP_TIMEOUT="1")
    await eventually(lambda: faults.seen("insert"))
    assert await consumer.stopped() == 0
    faults.mend()
    await flow.start("consumer")
    await flow.emptied()
    await flow.holds_exactly("hello")


async def test_a_stop_before_the_service_ever_answered_ends_in_time(flow: Workflow, faults: Faults) -> None:
    faults.breaks("", black_hole)
    consumer = await flow.start("consumer", EDW_VISIBILITY_TIMEOUT="600", EDW_STOP_TIMEOUT="2")
    await eventually(lambda: faults.seen("create"))
    began = time.monotonic()
    assert await consumer.stopped() == 0
    assert time.monotonic() - began < IN_TIME


async def test_a_second_signal_ends_a_consumer_whose_handler_blocks_everything(flow: Workflow) -> None:
    await flow.create()
    flow.handle_with("import time\n\n\nasync def handle(message):\n    time.sleep(60)\n")
    await flow.send("hello")
    consumer = await flow.start("consumer")
    await eventually(lambda: flow.are_visible(0))
    consumer.process.send_signal(signal.SIGTERM)
    # Again and again, as one presses Ctrl-C: Python can miss a signal in the instant in which it handles another.
    await eventually(lambda: consumer.process.returncode is not None or consumer.process.send_signal(signal.SIGINT))
    assert await consumer.ended() == 1
