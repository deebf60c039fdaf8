"""Whatever is in the queue: it is stored whole or poisoned with a reason, and nothing crashes the consumer."""

import asyncio
import base64
import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

import handler
from edw import entity, message
from edw.consumer import Consumer
from edw.entity import PROPERTY_MOST
from edw.message import Message, Unprocessable
from edw.settings import ConsumerSettings
from edw.stop import Stop
from standin import StandInQueue, StandInTable

settings.register_profile("tests", deadline=None, database=None)
settings.load_profile("tests")

anything = st.text(st.characters(codec=None))
zones = st.just(UTC) | st.timezones()
stamps = st.datetimes(timezones=st.just(UTC)).map(message.stamp) | st.datetimes(timezones=zones).map(str) | anything
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | anything,
    lambda inner: st.lists(inner) | st.dictionaries(anything, inner),
    max_leaves=10,
)
documents = st.fixed_dictionaries({}, optional={"msg": anything | values, "srcStamp": stamps | values, "more": values})
well_formed = st.builds(message.compose, st.text(), st.datetimes(timezones=st.just(UTC)))
contents = st.one_of(
    anything,
    st.binary().map(lambda raw: raw.decode("latin-1")),
    st.binary().map(lambda raw: base64.b64encode(raw).decode()),
    documents.map(json.dumps),
    well_formed,
    well_formed.map(lambda body: message.encode(body, "base64")),
    values.map(json.dumps),
)


@given(contents)
@settings(max_examples=500)
def test_any_text_is_a_message_or_has_a_reason_not_to_be_one(content: str) -> None:
    try:
        parsed = message.parse("8f1c", content)
    except Unprocessable as error:
        reason = str(error)
        assert reason
        assert "\n" not in reason
        return
    document = json.loads(content)
    assert (parsed.msg, parsed.src_stamp) == (document["msg"], document["srcStamp"])
    assert parsed.sent_at.tzinfo


@given(st.text(max_size=200).map(lambda text: text * 700), st.floats(min_value=0, max_value=1e12))
def test_any_msg_is_read_back_equal_from_properties_of_legal_size(msg: str, seconds: float) -> None:
    at = datetime(2026, 11, 23, tzinfo=UTC)
    row = entity.build(Message("8f1c", msg, "2026-11-23 12:00:00", at, {}), at, seconds, {})
    assert entity.data(row) == msg
    assert all(len(value.encode("utf-16-le")) // 2 <= PROPERTY_MOST for value in row.values() if isinstance(value, str))
    assert float(row["RowKey"]) >= 0


@given(st.dictionaries(st.text(max_size=10), st.integers() | st.text() | st.none() | st.binary() | st.booleans()))
def test_any_result_of_a_handler_is_stored_or_refused_and_changes_nothing_of_the_entitys_own(
    result: dict[str, Any],
) -> None:
    at = datetime(2026, 11, 23, tzinfo=UTC)
    parsed = Message("8f1c", "hello", "2026-11-23 12:00:00", at, {})
    plain = entity.build(parsed, at, 1.0, {})
    try:
        row = entity.build(parsed, at, 1.0, result)
    except (TypeError, ValueError) as error:
        refusal = str(error)
        assert refusal.startswith("handle returned ")
        return
    assert row.items() >= plain.items()
    assert row.keys() == plain.keys() | {name for name, value in result.items() if value is not None}


@given(st.lists(contents, max_size=20), st.sampled_from(["text", "base64"]))
def test_any_contents_end_stored_whole_or_poisoned_with_a_reason(bodies: list[str], encoding: str) -> None:
    queue, poison_queue, table = StandInQueue(*bodies), StandInQueue(name="work-poison"), StandInTable()
    known = ConsumerSettings(
        storage_account_name="acct",
        queue_name="work",
        table_name="results",
        poll_interval_min=0.01,
        poll_interval_max=0.01,
        drain=True,
        message_encoding=encoding,
    )
    contents_by_id = {waiting.message_id: waiting.content for waiting in queue.waiting}
    consumer = Consumer(known, queue, poison_queue, table, handler.handle, Stop())  # type: ignore[arg-type]  # stand-ins
    with capture_logs() as logs:
        asyncio.run(consumer.run())
    assert queue.waiting == []
    assert [entry for entry in logs if entry["log_level"] == "error"] == []
    poisoned = {}
    for waiting in poison_queue.waiting:
        envelope = json.loads(waiting.content)
        assert envelope["reason"]
        poisoned[envelope["messageId"]] = envelope["body"]
    stored = {keys[0]: entity.data(row) for keys, row in table.rows.items()}
    assert stored.keys() | poisoned.keys() == contents_by_id.keys()
    assert not stored.keys() & poisoned.keys()
    for message_id, content in contents_by_id.items():
        if message_id in poisoned:
            assert poisoned[message_id] == content
        else:
            assert stored[message_id] == json.loads(message.decode(content, encoding))["msg"]
