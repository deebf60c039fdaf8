"""A stream in which every tenth message can never succeed, each for another reason."""

import itertools
import json

from edw import message
from workflow import Workflow

NOON = "2026-11-23 12:00:00"
BAD = {
    "": "not JSON: Expecting value",
    "not json": "not JSON: Expecting value",
    '{"msg": "cut off': "not JSON: Unterminated string",
    "[" * 10_000: "not JSON that can be read: RecursionError",
    "[]": "not a JSON object but an array",
    "42": "not a JSON object but a number",
    "null": "not a JSON object but null",
    '"hello"': "not a JSON object but a string",
    json.dumps({"srcStamp": NOON}): "msg is missing",
    json.dumps({"msg": "hello"}): "srcStamp is missing",
    json.dumps({"msg": {"text": "hello"}, "srcStamp": NOON}): "msg is not a string but an object",
    json.dumps({"msg": None, "srcStamp": NOON}): "msg is not a string but null",
    json.dumps({"msg": "hello", "srcStamp": 1790000000}): "srcStamp is not a string but a number",
    json.dumps({"msg": "hello", "srcStamp": "yesterday"}): "srcStamp is not a time like",
    json.dumps({"msg": "hello", "srcStamp": "2026-02-30 12:00:00"}): "srcStamp is not a time like",
    '{"msg": "\\ud83d", "srcStamp": "2026-11-23 12:00:00"}': "msg is not Unicode text",
    message.encode(json.dumps({"msg": "hello", "srcStamp": NOON}), "base64"): "not JSON: Expecting value",
    json.dumps({"msg": "unknown customer", "srcStamp": NOON}): "no such customer",
    json.dumps({"msg": "a fault of the handler", "srcStamp": NOON}): "failed at delivery 2: ZeroDivisionError",
    json.dumps({"msg": "an impossible result", "srcStamp": NOON}): "failed at delivery 2: TypeError: handle returned",
}
FAULTY = """
from edw.message import Unprocessable


async def handle(message):
    if message.msg == "unknown customer":
        raise Unprocessable("no such customer")
    if message.msg == "a fault of the handler":
        1 / 0
    if message.msg == "an impossible result":
        return {"result": [1, 2]}
"""
MENDED = "def handle(message):\n    return {'is_mended': True}\n"


async def test_good_messages_are_stored_and_bad_ones_poisoned_with_the_reason_and_requeued_when_it_is_gone(
    flow: Workflow,
) -> None:
    await flow.create()
    flow.handle_with(FAULTY)
    good = [f"message {number}" for number in range(450)]
    bad = list(itertools.islice(itertools.cycle(BAD), 50))
    for place, content in enumerate(bad):
        await flow.send(*good[9 * place : 9 * place + 9])
        await flow.put(content)
    settings = {"EDW_MAX_DEQUEUE_COUNT": "2", "EDW_POLL_INTERVAL_MAX": "0.5"}
    consumers = [await flow.start("consumer", **settings) for _ in range(2)]
    await flow.emptied()
    for consumer in consumers:
        assert await consumer.stopped() == 0
    await flow.holds_exactly(*good)

    listed = await flow.run("poison", "list", "--json")
    documents = [json.loads(line) for line in listed.stdout.splitlines()]
    assert sorted(document["body"] for document in documents) == sorted(bad)
    assert [document for document in documents if not document["reason"].startswith(BAD[document["body"]])] == []

    flow.handle_with(MENDED)
    requeued = await flow.run("poison", "requeue", "--yes", "--reason", "failed at delivery")
    assert requeued.process.returncode == 0
    await flow.drained()
    mended = [json.loads(body)["msg"] for body in bad if BAD[body].startswith("failed at delivery")]
    assert len(mended) == 4
    await flow.holds_exactly(*good, *mended)
    assert await flow.poison_left() == 50 - 4
