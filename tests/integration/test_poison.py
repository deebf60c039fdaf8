"""The poison queue's program against Azurite."""

import asyncio
import json
import os
import pty
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import pytest
from azure.storage.queue.aio import QueueClient

import report
from azurite import KEY, Service
from edw import message
from proxy import Fault, Proxy, black_hole, refuse
from workflow import Program, Workflow, eventually, tapped

MEMBERS = ["body", "reason", "dequeueCount", "messageId", "insertedOn", "expiresOn", "poisonedOn", "consumer"]


def bodies(program: Program) -> list[str]:
    return sorted(json.loads(line)["body"] for line in program.stdout.splitlines())


def envelope(body: str, reason: str = "not JSON") -> str:
    times = dict.fromkeys(["insertedOn", "expiresOn", "poisonedOn"], "2026-11-23T12:00:00+00:00")
    return json.dumps(
        {"body": body, "reason": reason, "dequeueCount": 1, "messageId": "8f1c", **times, "consumer": "pod-1"}
    )


async def fill(queue: QueueClient, *contents: str) -> None:
    await asyncio.gather(*map(queue.send_message, contents))


async def visible(queue: QueueClient) -> list[str]:
    return sorted([received.content async for received in queue.receive_messages()])


@contextmanager
def terminal(typed: str) -> Iterator[int]:
    """A terminal on which something has been typed."""
    master, slave = pty.openpty()
    try:
        os.write(master, typed.encode())
        yield slave
    finally:
        os.close(master)
        os.close(slave)


@asynccontextmanager
async def broken_deletes(service: Service, fault: Fault) -> AsyncIterator[tuple[str, Proxy]]:
    """A connection string that leads through a proxy, which breaks deletes, and the proxy."""
    async with Proxy(service.queue_endpoint).listening() as proxy:
        proxy.breaks("delete", fault)
        yield replace(service, queue_endpoint=proxy.endpoint).connection_string, proxy


async def test_list_shows_every_message_and_leaves_it_visible_as_it_was(flow: Workflow) -> None:
    await flow.create()
    contents = [envelope(f"body {number}") for number in range(70)]
    await fill(flow.poison_queue, *contents)
    listed = await flow.run("poison", "list", "--json")
    assert listed.process.returncode == 0
    assert bodies(listed) == sorted(f"body {number}" for number in range(70))
    assert listed.stderr == ""
    assert await visible(flow.poison_queue) == sorted(contents)


async def test_a_line_of_json_has_all_that_the_consumer_wrote(flow: Workflow) -> None:
    await flow.create()
    await flow.put("not json")
    (sent,) = await flow.queue.peek_messages()
    await flow.drained()
    (written,) = await flow.poison_queue.peek_messages()
    listed = await flow.run("poison", "list", "--json")
    document = json.loads(listed.stdout)
    assert document == json.loads(written.content)
    assert list(document) == MEMBERS
    assert (document["body"], document["messageId"]) == ("not json", sent.id)


async def test_of_a_message_that_was_too_large_for_an_envelope_the_rest_is_null(flow: Workflow) -> None:
    await flow.create()
    await fill(flow.poison_queue, "x" * 65_536)
    document = json.loads((await flow.run("poison", "list", "--json")).stdout)
    assert list(document) == MEMBERS
    assert document["body"] == "x" * 65_536
    assert [name for name in MEMBERS if document[name] is not None] == ["body", "poisonedOn"]


async def test_the_table_fits_the_terminal_and_nothing_in_it_reaches_that_as_a_command(flow: Workflow) -> None:
    await flow.create()
    await fill(flow.poison_queue, envelope("\x1b[2J\x07\r\n" + "body " * 100, "\x1b]0;reason\x9c" * 20), "é" * 500)
    listed = await flow.run("poison", "list", COLUMNS="90")
    assert listed.process.returncode == 0
    header, *rows = listed.stdout.splitlines()
    assert header.split() == ["poisoned", "(UTC)", "deliveries", "reason", "message", "id", "body"]
    assert len(rows) == 2
    assert all(len(line) <= 90 for line in [header, *rows])
    assert listed.stdout.replace("\n", "").isprintable()
    assert r"2026-11-23 12:00:00  1           \x1b]0;reason" in rows[0]
    assert r"8f1c        \x1b[2J\x07" in rows[0]


async def test_an_empty_queue_is_told_and_no_failure(flow: Workflow) -> None:
    await flow.create()
    for command in (["list"], ["list", "--json"], ["requeue", "--yes"], ["purge", "--yes", "--json"]):
        ended = await flow.run("poison", *command)
        assert ended.process.returncode == 0
        assert ended.stdout == ""
        assert ended.stderr == f"Nothing to {command[0]} in {flow.poison_queue.queue_name}.\n"


async def test_a_queue_that_does_not_exist_is_one_line_and_is_not_created(flow: Workflow) -> None:
    for _ in range(2):
        listed = await flow.run("poison", "list", "--json")
        assert listed.process.returncode == 1
        assert listed.stdout == ""
        assert listed.stderr.startswith(f"aqs-poison.py: there is no queue {flow.poison_queue.queue_name}:")
        assert listed.stderr.count("\n") == 1


async def test_requeue_into_a_queue_that_does_not_exist_keeps_everything(flow: Workflow) -> None:
    await flow.poison_queue.create_queue()
    await fill(flow.poison_queue, *map(envelope, "abc"))
    requeued = await flow.run("poison", "requeue", "--yes")
    assert requeued.process.returncode == 1
    assert "404 QueueNotFound" in requeued.stderr.splitlines()[-1]
    assert len(await visible(flow.poison_queue)) == 3


async def test_messages_of_a_wrong_encoding_are_stored_once_they_are_requeued_for_the_right_one(flow: Workflow) -> None:
    await flow.create()
    sent = [message.encode(message.compose(f"ü{number}", message.parse_stamp("2026-11-23 12:00")), "base64")
            for number in range(40)]  # fmt: skip
    await fill(flow.queue, *sent, "not base64 either")
    await flow.drained()
    assert await flow.stored() == []
    requeued = await flow.run("poison", "requeue", "--yes", "--json", "--reason", "it looks like Base64")
    assert requeued.process.returncode == 0
    assert bodies(requeued) == sorted(sent)
    name = flow.queue.queue_name
    assert requeued.stderr == (f"Put 40 messages of {name}-poison back into {name}? --yes\n40 messages put back.\n")
    await flow.drained(EDW_MESSAGE_ENCODING="base64")
    assert await flow.stored() == sorted(f"ü{number}" for number in range(40))
    assert len(await visible(flow.poison_queue)) == 1, "the one that was not chosen is there, and visible"


async def test_requeue_puts_the_body_back_as_it_stood_in_the_queue(flow: Workflow) -> None:
    await flow.create()
    originals = ["not json", "", " é😀<&>\t\n]]>", "x" * 65_536, '{"msg": 7}']
    await fill(flow.queue, *originals)
    await flow.drained()
    assert (await flow.run("poison", "requeue", "--yes")).process.returncode == 0
    assert await visible(flow.queue) == sorted(originals)
    assert await report.length(flow.poison_queue) == 0


async def test_yes_on_the_terminal_does_it(flow: Workflow) -> None:
    await flow.create()
    await fill(flow.poison_queue, *map(envelope, "abc"))
    with terminal("y\n") as typed:
        requeued = await flow.run("poison", "requeue", stdin=typed)
    name = flow.queue.queue_name
    assert requeued.process.returncode == 0
    assert requeued.stderr == f"Put 3 messages of {name}-poison back into {name}? [y/N] 3 messages put back.\n"
    assert requeued.stdout == ""
    assert await visible(flow.queue) == ["a", "b", "c"]


@pytest.mark.parametrize("answer", ["n\n", "\n", "\x04"], ids=["no", "nothing", "end of input"])
@pytest.mark.parametrize("command", ["requeue", "purge"])
async def test_any_other_answer_changes_nothing(flow: Workflow, command: str, answer: str) -> None:
    await flow.create()
    await fill(flow.poison_queue, *map(envelope, "abc"))
    with terminal(answer) as typed:
        ended = await flow.run("poison", command, stdin=typed)
    assert ended.process.returncode == 1
    assert ended.stderr.endswith("[y/N] Nothing was changed.\n")
    assert await flow.left() == 0
    assert await visible(flow.poison_queue) == sorted(map(envelope, "abc"))


async def test_ctrl_c_at_the_question_changes_nothing_and_gives_everything_back(flow: Workflow) -> None:
    await flow.create()
    await fill(flow.poison_queue, *(envelope(str(number)) for number in range(40)))
    with terminal("") as typed:
        purge = await flow.start("poison", "purge", stdin=typed)
        await eventually(lambda: "[y/N]" in purge.stderr)
        assert await visible(flow.poison_queue) == []
        assert await purge.stopped(signal.SIGINT) == 1
    assert purge.stderr.endswith("Nothing was changed.\n")
    assert len(await visible(flow.poison_queue)) == 40


@pytest.mark.parametrize("command", ["requeue", "purge"])
async def test_without_a_terminal_and_yes_it_refuses_in_one_line(flow: Workflow, command: str) -> None:
    await flow.create()
    await fill(flow.poison_queue, envelope("a"))
    for stdin in (b"y\n", asyncio.subprocess.DEVNULL):
        refused = await flow.run("poison", command, stdin=stdin)
        assert refused.process.returncode == 2
        assert refused.stderr == f"aqs-poison.py: {command} asks first, and standard input is no terminal: add --yes\n"
    assert await visible(flow.poison_queue) == [envelope("a")]


@pytest.mark.parametrize("argv", [[], ["drop"], ["list", "purge"], ["list", "--nonsense"]])
async def test_wrong_usage_is_one_line(flow: Workflow, argv: list[str]) -> None:
    ended = await flow.run("poison", *argv)
    assert ended.process.returncode == 2
    assert ended.stderr.startswith("aqs-poison.py: ")
    assert ended.stderr.count("\n") == 1


async def test_purge_with_a_reason_deletes_those_and_leaves_the_others(flow: Workflow) -> None:
    await flow.create()
    kept = [envelope("c", "srcStamp is missing"), "bare"]
    await fill(flow.poison_queue, envelope("a", "not JSON: x"), envelope("b", "not JSON: y"), *kept)
    for command, shown in ((["list"], ["a", "b"]), (["purge", "--yes"], ["a", "b"]), (["list"], [])):
        ended = await flow.run("poison", *command, "--json", "--reason", "not JSON")
        assert ended.process.returncode == 0
        assert bodies(ended) == shown
    assert ended.stderr == f"Nothing to list in {flow.poison_queue.queue_name} whose reason contains 'not JSON'.\n"
    assert await visible(flow.poison_queue) == sorted(kept)
    assert await flow.left() == 0


async def test_one_message_is_put_back_by_its_id(flow: Workflow) -> None:
    await flow.create()
    chosen = envelope("b").replace("8f1c", "77aa")
    await fill(flow.poison_queue, envelope("a"), chosen, "bare")
    requeued = await flow.run("poison", "requeue", "--yes", "--message-id", "77aa")
    assert requeued.process.returncode == 0
    assert await visible(flow.queue) == ["b"]
    assert await visible(flow.poison_queue) == sorted([envelope("a"), "bare"])


async def test_a_message_that_somebody_else_has_leased_is_left_to_them_and_told(flow: Workflow) -> None:
    await flow.create()
    await fill(flow.poison_queue, *map(envelope, "abc"))
    theirs = await flow.poison_queue.receive_message(visibility_timeout=60)
    assert theirs
    told = f"Leased elsewhere and left alone for now: about 1 message of {flow.poison_queue.queue_name}.\n"
    listed = await flow.run("poison", "list", "--json")
    assert listed.stderr == told
    assert len(bodies(listed)) == 2
    assert listed.process.returncode == 1
    purged = await flow.run("poison", "purge", "--yes")
    assert purged.process.returncode == 1
    assert purged.stderr.startswith(told)
    await flow.poison_queue.delete_message(theirs)  # whose lease is still theirs


async def test_a_requeue_that_is_killed_before_the_delete_leaves_the_message_in_both_queues(
    flow: Workflow, service: Service
) -> None:
    await flow.create()
    await fill(flow.poison_queue, envelope("a"))
    async with broken_deletes(service, black_hole) as (connection, proxy):
        requeue = await flow.start("poison", "requeue", "--yes", AZURE_STORAGE_CONNECTION_STRING=connection)
        await eventually(lambda: proxy.seen[f"delete {flow.poison_queue.queue_name}"])
        await requeue.kill()
        assert await visible(flow.queue) == ["a"]
        assert await report.length(flow.poison_queue) == 1


async def test_a_delete_that_is_refused_leaves_the_message_in_both_queues_and_says_so(
    flow: Workflow, service: Service
) -> None:
    await flow.create()
    await fill(flow.poison_queue, *map(envelope, "ab"))
    async with broken_deletes(service, refuse(400, "InvalidHeaderValue")) as (connection, _):
        requeued = await flow.run("poison", "requeue", "--yes", AZURE_STORAGE_CONNECTION_STRING=connection)
    name = flow.queue.queue_name
    assert requeued.process.returncode == 1
    assert requeued.stderr.splitlines()[-1] == (
        f"0 messages put back, 2 left in {name}-poison, 2 of them put into {name} too: run it again."
    )
    assert "Traceback" not in requeued.stderr
    assert await visible(flow.queue) == ["a", "b"]
    assert len(await visible(flow.poison_queue)) == 2


async def test_requeue_ends_while_a_consumer_poisons_the_messages_again_at_once(flow: Workflow) -> None:
    await flow.create()
    await fill(flow.queue, *(f"bad {number}" for number in range(60)))
    consumer = await flow.start("consumer")
    await eventually(lambda: len(consumer.events("message sent to the poison queue")) == 60)
    requeued = await flow.run("poison", "requeue", "--yes", "--json")
    assert requeued.process.returncode == 0
    assert len(bodies(requeued)) == len(set(bodies(requeued))) == 60
    await eventually(lambda: len(consumer.events("message sent to the poison queue")) == 120)
    assert await consumer.stopped() == 0


async def test_secrets_and_pop_receipts_are_in_no_output(flow: Workflow, service: Service) -> None:
    await flow.create()
    await fill(flow.poison_queue, *map(envelope, "abc"))
    async with tapped(service) as (connection, queue_tap, _):
        through = {"AZURE_STORAGE_CONNECTION_STRING": connection, "EDW_LOG_LEVEL": "debug"}
        programs = [
            await flow.run("poison", *argv, **through)
            for argv in (["list"], ["list", "--json"], ["requeue", "--yes", "--json"])
        ]
        assert len(queue_tap.pop_receipts()) >= len(programs)
        for secret in (KEY, "SharedKey", *queue_tap.pop_receipts()):
            for program in programs:
                assert secret not in program.stderr + program.stdout


async def test_output_that_is_cut_off_ends_the_program_without_a_traceback(flow: Workflow) -> None:
    await flow.create()
    await fill(flow.poison_queue, *map(envelope, "abc"))
    reading, writing = os.pipe()
    os.close(reading)
    listing = await flow.run("poison", "list", "--json", stdout=writing)
    os.close(writing)
    assert listing.process.returncode == 1
    assert listing.stderr == "aqs-poison.py: standard output: Broken pipe\n"
    assert len(await visible(flow.poison_queue)) == 3
