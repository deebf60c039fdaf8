"""The demo, the report it ends with, and the Azurite it starts."""

import asyncio
import os
import re
import signal
import socket
import sys
from pathlib import Path
from uuid import uuid4

import pytest

import azurite
import report
from azurite import AzuriteError
from edw import message
from edw.storage import Storage
from workflow import Workflow, eventually

TOOLS = Path(__file__).parents[2] / "tools"
needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in Linux's /proc")


class Demo:
    """A run of the demo, whose processes all carry a mark in their environment."""

    def __init__(self, process: asyncio.subprocess.Process, mark: str) -> None:
        self.process = process
        self.mark = mark
        self.said = ""
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, *argv: str) -> "Demo":
        mark = f"DEMO_MARK={uuid4().hex}"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(TOOLS / "demo.py"),
            *argv,
            env=dict(os.environ) | dict([mark.split("=")]),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        return cls(process, mark)

    async def _read(self) -> None:
        assert self.process.stdout
        async for line in self.process.stdout:
            self.said += line.decode()

    async def ended(self) -> int:
        async with asyncio.timeout(50):
            await self._reading
            return await self.process.wait()

    def running(self) -> list[str]:
        """The commands of all processes with the mark."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:  # ended meanwhile
                continue
        return found


@needs_proc
async def test_the_demo_proves_that_every_message_is_stored_once_and_leaves_nothing_running() -> None:
    demo = await Demo.start("--messages", "300")
    assert await demo.ended() == 0, demo.said
    figures = dict(re.findall(r"^(\S[a-z ]+?) +([\d,]+)(?:\s|$)", demo.said, re.MULTILINE))
    assert figures["sent"] == figures["stored"] == "300"
    assert figures["lost"] == figures["doubled"] == figures["poisoned"] == figures["left in the queue"] == "0"
    assert int(figures["messages a second"].replace(",", "")) > 0
    assert re.search(r"processing time +p50 [\d.]+ s, p95 [\d.]+ s, p99 [\d.]+ s", demo.said)
    assert demo.running() == []


async def test_two_demos_run_at_the_same_time() -> None:
    demos = [await Demo.start("--messages", "200") for _ in range(2)]
    assert [await demo.ended() for demo in demos] == [0, 0], [demo.said for demo in demos]


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_an_interrupted_demo_leaves_nothing_running(number: signal.Signals) -> None:
    demo = await Demo.start("--messages", "100000")
    await eventually(lambda: re.search(r"\d stored$", demo.said, re.MULTILINE))
    assert len(demo.running()) == 5, "the demo, Azurite, a producer and two consumers"
    demo.process.send_signal(number)
    assert await demo.ended() == 130
    assert demo.running() == []
    assert "Traceback" not in demo.said


async def examined(flow: Workflow, sent: int) -> report.Report:
    return await report.examine(flow.queue, flow.poison_queue, flow.table, sent)


async def test_the_report_finds_what_is_lost_doubled_poisoned_and_left(flow: Workflow) -> None:
    await flow.run("producer", "--count", "5", "--rate", "0")
    await flow.drained()
    assert (await examined(flow, 5)).is_exact
    assert (await examined(flow, 6)).lost == 1
    assert not (await examined(flow, 6)).is_exact
    assert not (await examined(flow, 4)).is_exact, "one more than was sent"

    first, second, *_ = await flow.rows()
    await flow.table.create_entity(first | {"RowKey": "again"})
    doubled = await examined(flow, 5)
    assert (doubled.stored, doubled.doubled, doubled.lost) == (6, 1, 0)
    assert not doubled.is_exact
    await flow.table.delete_entity(second)
    replaced = await examined(flow, 5)
    assert (replaced.stored, replaced.doubled, replaced.lost) == (5, 1, 1)
    assert not replaced.is_exact


async def test_the_report_counts_what_is_left_in_the_queues(flow: Workflow) -> None:
    await flow.run("producer", "--count", "1")
    await flow.drained()
    await flow.put("left")
    assert (await examined(flow, 1)).left == 1
    assert not (await examined(flow, 1)).is_exact
    await flow.drained()
    assert (await examined(flow, 1)).poisoned == 1
    assert not (await examined(flow, 1)).is_exact


async def test_the_report_understands_the_stamps_of_other_senders(flow: Workflow) -> None:
    await flow.run("producer", "--input", "-", stdin=b'{"msg": "mine", "srcStamp": "2026-11-23T10:00:00Z"}')
    await flow.drained()
    assert (await examined(flow, 1)).lost == 1


async def test_the_report_is_a_program_too(flow: Workflow) -> None:
    await flow.run("producer", "--count", "3", "--rate", "0")
    await flow.drained()
    for count, code in (("3", 0), ("4", 1)):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(TOOLS / "report.py"),
            "--count",
            count,
            env=flow.environment,
            cwd=flow.folder,
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate()
        assert b"messages a second" in said
        assert process.returncode == code


def test_a_port_in_use_is_said_by_the_runner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AzuriteError, match=str(port)), azurite.running(queue_port=port):
            pass


def test_azurite_that_is_not_installed_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azurite, "MAIN", Path("/nowhere/azurite.js"))
    with pytest.raises(AzuriteError, match="make install"), azurite.running():
        pass


async def test_azurite_ends_with_the_process_that_started_it_however_that_ended() -> None:
    runner = await asyncio.create_subprocess_exec(
        sys.executable, str(TOOLS / "azurite.py"), stdout=asyncio.subprocess.PIPE
    )
    assert runner.stdout
    connection = (await runner.stdout.readline()).decode()
    port = int(re.findall(r":(\d+)/", connection)[0])
    with socket.create_connection(("127.0.0.1", port)):
        pass
    runner.kill()
    await runner.communicate()

    def is_gone() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return True
        return False

    await eventually(is_gone)


async def test_the_runners_services_answer_at_once(tmp_path: Path) -> None:
    with azurite.running() as service:
        settings = Workflow(service.connection_string, tmp_path).settings
        async with Storage(settings) as storage:
            queue = await storage.queue("work")
            await queue.create_queue()
            await queue.send_message(message.serialize({}))
            assert await report.length(queue) == 1
