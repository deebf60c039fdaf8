"""The wire format: what is understood, and what is refused with which reason."""

import base64
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from edw import message
from edw.message import Unprocessable

ID = "8f1c"
NOON = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)


def body(**members: object) -> str:
    return json.dumps({"msg": "hello", "srcStamp": "2026-11-23 12:00:00.123456"} | members)


def test_a_message_as_the_aws_producer_writes_it_is_understood() -> None:
    parsed = message.parse(ID, '{"msg": "Scale Test Message : COUNT 1", "srcStamp": "2026-11-23 12:00:00.123456"}')
    assert parsed.id == ID
    assert parsed.msg == "Scale Test Message : COUNT 1"
    assert parsed.src_stamp == "2026-11-23 12:00:00.123456"
    assert parsed.sent_at == NOON


def test_a_new_message_is_written_as_the_aws_producer_writes_it() -> None:
    assert (
        message.compose("Scale Test Message : COUNT 1", NOON)
        == '{"msg": "Scale Test Message : COUNT 1", "srcStamp": "2026-11-23 12:00:00.123456"}'
    )


def test_a_new_message_is_stamped_in_utc() -> None:
    in_tokyo = NOON.astimezone(timezone(timedelta(hours=9)))
    assert message.stamp(in_tokyo) == "2026-11-23 12:00:00.123456"


@pytest.mark.parametrize(
    ("src_stamp", "meant"),
    [
        ("2026-11-23 12:00:00", NOON.replace(microsecond=0)),
        ("2026-11-23T12:00:00.123456Z", NOON),
        ("2026-11-23t12:00:00.123456z", NOON),
        ("2026-11-23T12:00:00.123", NOON.replace(microsecond=123000)),
        ("2026-11-23T12:00:00.1234567Z", NOON),  # .NET's seven digits
        ("2026-11-23T14:00:00.123456+02:00", NOON),
        ("2026-11-23T06:30:00.123456-0530", NOON),
        ("2026-11-23 12:00", NOON.replace(microsecond=0)),
    ],
)
def test_source_stamps_of_other_senders_are_understood(src_stamp: str, meant: datetime) -> None:
    parsed = message.parse(ID, body(srcStamp=src_stamp))
    assert parsed.sent_at == meant
    assert parsed.src_stamp == src_stamp


def test_unknown_members_are_ignored() -> None:
    assert message.parse(ID, body(color="blue", nested={"a": [1, None]})).msg == "hello"


@pytest.mark.parametrize("msg", ["", "\x00\x01\x1f", "😀 e\u0301 ￿", "\"'<&>\\/#?%", "line\r\nline\u2028", "\ufeff"])
def test_any_text_survives_the_wire(msg: str) -> None:
    wire = message.compose(msg, NOON)
    assert wire.isascii()
    assert message.parse(ID, wire).msg == msg


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("Hello", "not JSON"),
        ('{"msg": "a", "srcStamp"', "not JSON"),
        ("[" * 100_000, "not JSON that can be read"),
        ("1" * 10_000, "not JSON that can be read"),
        ("[]", "not a JSON object but an array"),
        ('"text"', "not a JSON object but a string"),
        ("null", "not a JSON object but null"),
        ("true", "not a JSON object but a boolean"),
        ("NaN", "not a JSON object but a number"),
        ("{}", "srcStamp is missing"),
        ('{"srcStamp": "2026-11-23 12:00:00"}', "msg is missing"),
        (body(msg=5), "msg is not a string but a number"),
        (body(msg=None), "msg is not a string but null"),
        (body(msg={"a": 1}), "msg is not a string but an object"),
        (body(msg="\ud800"), "msg is not Unicode text"),
        (body(srcStamp=1700000000), "srcStamp is not a string but a number"),
        (body(srcStamp=""), "srcStamp is not a time"),
        (body(srcStamp="yesterday"), "srcStamp is not a time"),
        (body(srcStamp="2026-11-23"), "srcStamp is not a time"),
        (body(srcStamp="2026-13-23 12:00:00"), "srcStamp is not a time"),
        (body(srcStamp="2026-11-23\x0012:00:00"), "srcStamp is not a time"),
        (body(srcStamp="٢٠٢٦-11-23 12:00:00"), "srcStamp is not a time"),
        (body(srcStamp="2026-11-23 12:00:00+25:00"), "srcStamp is not a time"),
    ],
)
def test_what_is_not_a_message_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(Unprocessable, match=f"^{reason}"):
        message.parse(ID, text)


def test_a_base64_message_in_a_text_queue_is_refused_with_the_setting_to_look_at() -> None:
    with pytest.raises(Unprocessable, match="EDW_MESSAGE_ENCODING"):
        message.parse(ID, message.encode(body(), "base64"))


def test_base64_is_what_other_peers_write() -> None:
    assert message.encode(body(), "base64") == base64.b64encode(body().encode()).decode()
    assert message.decode(base64.b64encode("😀".encode()).decode(), "base64") == "😀"


@pytest.mark.parametrize("content", ["{}", "abc", "é", base64.b64encode(b"\xff").decode()])
def test_what_is_not_base64_is_refused_with_the_setting_that_asks_for_it(content: str) -> None:
    with pytest.raises(Unprocessable, match="EDW_MESSAGE_ENCODING"):
        message.decode(content, "base64")


@pytest.mark.parametrize("secret", ["4111-1111-1111-1111", "2026-11-23X"])
def test_a_reason_never_repeats_the_content(secret: str) -> None:
    for text in (secret, f'{{"{secret}', body(srcStamp=secret), body(msg=[secret])):
        with pytest.raises(Unprocessable) as refused:
            message.parse(ID, text)
        assert secret not in str(refused.value)
