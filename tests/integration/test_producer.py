"""The producer program against Azurite."""

import asyncio
import json
import os
import pty
import signal
import sys
import termios
from datetime import timedelta
from pathlib import Path

import pytest

from edw import message
from workflow import APP, Workflow, eventually


async def contents(flow: Workflow) -> list[str]:
    return [sent.content async for sent in flow.queue.receive_messages()]


async def test_without_flags_it_sends_the_numbered_message_every_second_until_stopped(flow: Workflow) -> None:
    producer = await flow.start("producer")
    await producer.says("producer started")

    async def two() -> bool:
        return await flow.left() >= 2

    await eventually(two)
    assert await producer.stopped(signal.SIGINT) == 0
    sent = [message.parse("8f1c", content) for content in await contents(flow)]
    assert [parsed.msg for parsed in sent[:2]] == ["Scale Test Message : COUNT 1", "Scale Test Message : COUNT 2"]
    assert sent[1].sent_at - sent[0].sent_at >= timedelta(seconds=0.9)
    assert producer.events("producer stopped")[0]["sent"] == len(sent)


async def test_the_last_line_says_what_was_sent(flow: Workflow) -> None:
    producer = await flow.run("producer", "--count", "25", "--rate", "0")
    assert producer.process.returncode == 0
    last = json.loads(producer.stderr.splitlines()[-1])
    assert (last["event"], last["sent"], last["failed"]) == ("producer stopped", 25, 0)
    assert last["seconds"] > 0
    assert last["rate"] > 0
    assert await flow.left() == 25


async def test_it_is_configured_by_environment_alone(flow: Workflow) -> None:
    account = {"AZURE_STORAGE_ACCOUNT_NAME": "another"}  # over which the connection string wins
    producer = await flow.run("producer", EDW_COUNT="7", EDW_RATE="0", EDW_CONCURRENCY="2", **account)
    assert producer.process.returncode == 0
    assert await flow.left() == 7


async def test_a_duration_ends_it_with_0(flow: Workflow) -> None:
    producer = await flow.run("producer", "--duration", "2", "--rate", "10")
    assert producer.process.returncode == 0
    assert 0 < await flow.left() <= 20


async def test_lines_of_standard_input_are_sent(flow: Workflow) -> None:
    lines = 'plain\n\n{"msg": "json", "srcStamp": "2020-01-01T00:00:00Z"}\n{"order": 7}\n'
    producer = await flow.run("producer", "--input", "-", stdin=lines.encode())
    assert producer.process.returncode == 0
    parsed = [message.parse("8f1c", content) for content in await contents(flow)]
    assert sorted(each.msg for each in parsed) == ["json", "plain", '{"order": 7}']
    assert [each.src_stamp for each in parsed if each.msg == "json"] == ["2020-01-01T00:00:00Z"]


async def test_lines_of_a_file_are_sent(flow: Workflow) -> None:
    (flow.folder / "orders.ndjson").write_text("".join(f"order {number}\n" for number in range(50)))
    producer = await flow.run("producer", "--input", "orders.ndjson")
    assert producer.process.returncode == 0
    assert sorted(message.parse("8f1c", content).msg for content in await contents(flow)) == sorted(
        f"order {number}" for number in range(50)
    )


async def test_an_input_that_is_not_there_ends_it_with_2(flow: Workflow) -> None:
    producer = await flow.run("producer", "--input", "nowhere.ndjson")
    assert producer.process.returncode == 2
    assert producer.stderr == "aqs-producer.py: EDW_INPUT: 'nowhere.ndjson' cannot be read: No such file or directory\n"


async def test_a_line_too_large_for_a_message_fails_alone_and_the_exit_code_says_so(flow: Workflow) -> None:
    producer = await flow.run("producer", "--input", "-", stdin=b"x" * 70_000 + b"\nfine\n")
    assert producer.process.returncode == 1
    assert [message.parse("8f1c", content).msg for content in await contents(flow)] == ["fine"]
    stopped = producer.events("producer stopped")[0]
    assert (stopped["sent"], stopped["failed"]) == (1, 1)
    refused = producer.events("message not sent")[0]
    assert "65536" in refused["error"]
    assert refused["message"] == "line 1"


async def test_a_stop_while_standard_input_stays_open_ends_it_with_0(flow: Workflow) -> None:
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(APP / "aqs-producer.py"),
        "--input",
        "-",
        env=flow.environment,
        cwd=flow.folder,
        stdin=reading,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(reading)
    try:
        os.write(writing, b"first\n")
        await eventually(flow.left)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            _, stderr = await process.communicate()
    finally:
        os.close(writing)
    assert process.returncode == 0
    assert b"Fatal" not in stderr
    assert b"Traceback" not in stderr


@pytest.mark.parametrize(("flags", "year"), [(["--time-to-live", "-1"], 9999), ([], None)])
async def test_the_time_to_live_is_the_services_or_the_one_asked_for(
    flow: Workflow, flags: list[str], year: int | None
) -> None:
    await flow.run("producer", "--count", "1", *flags)
    (sent,) = [message async for message in flow.queue.receive_messages()]
    if year:
        assert sent.expires_on.year == year
    else:
        assert (sent.expires_on - sent.inserted_on).days == 7


async def test_on_a_terminal_it_draws_a_bar(flow: Workflow) -> None:
    terminal, end_of_program = pty.openpty()
    termios.tcsetwinsize(end_of_program, (24, 100))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(APP / "aqs-producer.py"),
        "--count",
        "40",
        "--rate",
        "0",
        env=flow.environment | {"EDW_LOG_FORMAT": "text"},
        cwd=flow.folder,
        stderr=end_of_program,
    )
    os.close(end_of_program)
    shown = b""
    async with asyncio.timeout(20):
        while chunk := await asyncio.to_thread(_read, terminal):
            shown += chunk
        assert await process.wait() == 0
    assert b"40/40" in shown
    assert b"producer stopped" in shown.rpartition(b"40/40")[2], "the summary comes last"


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # what Linux says at the end of a terminal
        return b""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into Linux's /proc")
async def test_a_signal_ends_it_while_it_waits_for_the_writer_of_a_named_pipe(flow: Workflow) -> None:
    os.mkfifo(flow.folder / "orders")
    producer = await flow.start("producer", "--input", "orders")
    state = Path(f"/proc/{producer.process.pid}")
    await eventually(lambda: "aiohttp" in (state / "maps").read_text() and " S " in (state / "stat").read_text())
    assert await producer.stopped() == 0
