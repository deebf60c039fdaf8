"""The poison queue's program when something goes wrong, between stand-ins for its queues."""

import asyncio
import json
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from edw import outage, poison, program, redrive
from edw.errors import LeaseLost, Rejected, Unavailable
from edw.lease import Lease
from edw.queue import Delivery
from edw.redrive import Redrive, change, show
from edw.settings import PoisonSettings
from edw.stop import Stop
from standin import StandInQueue, Waiting


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(outage, "LONGEST_WAIT", 0.01)
    monkeypatch.setattr(redrive, "PATIENCE", 0.2)


def envelope(body: str) -> str:
    now = datetime.now(UTC)
    return poison.envelope(Delivery("8f1c", body, 1, now, now, Lease("receipt", 0.0)), "not JSON", "pod-1")


class Desk:
    """The program between a queue and a poison queue of so many messages."""

    def __init__(self, count: int = 3, **settings: object) -> None:
        self.settings = PoisonSettings(
            queue_name="work", storage_account_name="acct", yes=True, **({"command": "requeue"} | settings)
        )
        self.queue = StandInQueue(name="work")
        self.poison_queue = StandInQueue(*(envelope(f"body {number}") for number in range(count)), name="work-poison")
        self.stop = Stop()
        self.redrive = Redrive(self.settings, self.queue, self.poison_queue, self.stop)  # type: ignore[arg-type]

    async def run(self) -> int:
        if self.settings.command == "list":
            return await show(self.redrive, self.settings)
        return await change(self.redrive, self.settings, self.stop)

    @property
    def bodies(self) -> list[str]:
        return sorted(waiting.content for waiting in self.queue.waiting)

    @property
    def left(self) -> list[Waiting]:
        return self.poison_queue.waiting

    @property
    def hidden(self) -> list[Waiting]:
        return [waiting for waiting in self.left if waiting.visible_at > time.monotonic()]


async def test_a_requeued_message_expires_as_any_new_one_does() -> None:
    desk = Desk()
    assert await desk.run() == program.DONE
    assert desk.bodies == ["body 0", "body 1", "body 2"]
    assert desk.left == []
    assert desk.queue.time_to_live == [None] * 3


async def test_a_message_that_is_poisoned_again_at_once_is_requeued_once() -> None:
    desk = Desk(count=100)

    async def consume() -> None:
        while True:
            await asyncio.sleep(0)
            while desk.queue.waiting:
                desk.poison_queue.waiting.append(Waiting(desk.queue.waiting.pop().content))

    consuming = asyncio.create_task(consume())
    async with asyncio.timeout(10):
        assert await desk.run() == program.DONE
    consuming.cancel()
    assert desk.redrive.done == len(desk.queue.time_to_live) == 100


async def test_messages_that_are_poisoned_as_fast_as_they_are_read_do_not_keep_the_program_from_ending() -> None:
    desk = Desk(command="list")
    desk.poison_queue.on_receive = lambda: desk.poison_queue.waiting.append(Waiting("bare"))
    async with asyncio.timeout(10):
        assert await desk.run() == program.DONE


@pytest.mark.parametrize("command", ["requeue", "purge"])
async def test_a_lease_that_may_end_before_the_delete_is_not_used(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(redrive, "LEASE", 2 * redrive.REQUEST_TIMEOUT - 1)
    desk = Desk(command=command)
    assert await desk.run() == program.FAILED
    assert desk.bodies == []
    assert len(desk.left) == 3
    did = "put back" if command == "requeue" else "deleted"
    assert capsys.readouterr().err.splitlines()[-1] == f"0 messages {did}, 3 left in work-poison: run it again."


async def test_a_lease_that_is_lost_between_put_and_delete_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    desk = Desk()
    desk.poison_queue.faults.plan("delete", LeaseLost("404 MessageNotFound"))
    assert await desk.run() == program.FAILED
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "2 messages put back, 1 left in work-poison, 1 of them put into work too: run it again."


async def test_a_message_that_the_queue_refuses_stays_and_the_others_go(capsys: pytest.CaptureFixture[str]) -> None:
    desk = Desk()
    desk.queue.faults.plan("send", Rejected("send to work: 400 OutOfRangeInput"))
    assert await desk.run() == program.FAILED
    assert len(desk.bodies) == 2
    assert len(desk.left) == 1
    assert desk.hidden == []
    assert "2 messages put back, 1 left in work-poison: run it again.\n" in capsys.readouterr().err


async def test_passing_faults_are_ridden_out() -> None:
    desk = Desk()
    for queue, operations in ((desk.queue, ["send"]), (desk.poison_queue, ["length", "receive", "delete", "release"])):
        for operation in operations:
            queue.faults.plan(operation, *[Unavailable("503 ServerBusy", "ServerBusy")] * 2)
    assert await desk.run() == program.DONE
    assert desk.left == []


@pytest.mark.parametrize("operation", ["receive", "send", "delete"])
async def test_after_an_outage_that_does_not_end_everything_held_is_given_back(
    operation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = Desk(count=50)
    queue = desk.queue if operation == "send" else desk.poison_queue

    def fail_at_the_second_page() -> None:
        if queue.pages:
            raise Unavailable("503 ServerBusy", "ServerBusy")

    if operation == "receive":
        queue.on_receive = fail_at_the_second_page
    else:
        queue.faults.plan(operation, *[Unavailable("503 ServerBusy", "ServerBusy")] * 100_000)
    with pytest.raises(Unavailable):
        await desk.run()
    assert len(desk.left) == 50
    assert desk.hidden == []
    assert ("0 messages put back, 50 left" in capsys.readouterr().err) == (operation != "receive")


async def test_a_service_that_was_waited_for_in_vain_is_not_waited_for_again_to_give_back() -> None:
    desk = Desk(count=50)
    fault = Unavailable("503 ServerBusy", "ServerBusy")

    def fail_at_the_second_page() -> None:
        if desk.poison_queue.pages:
            raise fault

    desk.poison_queue.on_receive = fail_at_the_second_page
    desk.poison_queue.faults.plan("release", *[fault] * 100_000)
    with pytest.raises(Unavailable):
        await desk.run()
    assert len(desk.poison_queue.faults.planned["release"]) >= 100_000 - 32, "one attempt for each message"


async def test_what_cannot_be_given_back_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    desk = Desk(command="list")
    desk.poison_queue.faults.plan("release", *[Unavailable("503 ServerBusy", "ServerBusy")] * 100_000)
    assert await desk.run() == program.DONE
    assert "3 messages could not be given back: visible again within 300 s." in capsys.readouterr().err


async def test_an_interrupted_program_gives_back_what_it_holds() -> None:
    desk = Desk(count=100)
    desk.poison_queue.on_receive = desk.stop.set
    with pytest.raises(program.Aborted, match="interrupted; nothing was changed"):
        await desk.run()
    assert desk.poison_queue.pages == [(32, 32)]
    assert len(desk.left) == 100
    assert desk.hidden == []


async def test_a_program_that_is_interrupted_at_work_finishes_what_it_began(capsys: pytest.CaptureFixture[str]) -> None:
    desk = Desk(count=100)
    send = desk.queue.send

    async def stop_and_send(content: str, time_to_live: int | None = None) -> None:
        desk.stop.set()
        await send(content, time_to_live)

    desk.queue.send = stop_and_send  # type: ignore[method-assign]
    assert await desk.run() == program.FAILED
    assert 0 < len(desk.bodies) < 100
    assert len(desk.bodies) + len(desk.left) == 100, "none is in both"
    assert desk.hidden == []
    assert "run it again" in capsys.readouterr().err


async def test_output_that_nobody_takes_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise program.Aborted("standard output: Broken pipe")

    monkeypatch.setattr(redrive, "emit", refuse)
    desk = Desk(count=100, json=True)
    with pytest.raises(program.Aborted, match="Broken pipe"):
        await desk.run()
    assert len(desk.bodies) + len(desk.left) == 100
    assert len(desk.left) > 50
    assert desk.hidden == []


async def test_the_oldest_message_is_first_whatever_the_order_of_the_queue(
    capsys: pytest.CaptureFixture[str],
) -> None:
    desk = Desk(command="list", json=True)
    desk.poison_queue.waiting.reverse()
    await desk.run()
    assert [json.loads(line)["body"] for line in capsys.readouterr().out.splitlines()] == ["body 0", "body 1", "body 2"]


def test_a_service_that_cannot_be_reached_is_given_up_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}/acct"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program.log, "configure", lambda *_: None)  # which would be for all tests after this
    monkeypatch.setenv("AZURE_QUEUE_NAME", "work")
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING", f"AccountName=acct;AccountKey=c2VjcmV0LWtleQ==;QueueEndpoint={nowhere}"
    )
    monkeypatch.setattr(sys, "argv", ["aqs-poison.py", "list"])
    began = time.monotonic()
    with capture_logs() as logs:
        assert redrive.main() == program.FAILED
    assert redrive.PATIENCE <= time.monotonic() - began < redrive.PATIENCE + 5
    said = capsys.readouterr()
    assert said.err.startswith("aqs-poison.py: count work-poison: Cannot connect to host 127.0.0.1")
    assert said.err.count("\n") == 1
    assert [entry["event"] for entry in logs] == ["service unavailable, trying again"]
    assert said.out == ""
