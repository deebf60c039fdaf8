"""The poison queue's messages: what is written is read back."""

import json
import time
from datetime import UTC, datetime

import pytest

from edw import poison
from edw.lease import Lease
from edw.message import BODY_MOST
from edw.queue import Delivery

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
LATER = datetime(2026, 11, 30, 12, tzinfo=UTC)


def delivery(content: str) -> Delivery:
    return Delivery("8f1c", content, 3, NOON, LATER, Lease("receipt", time.monotonic() + 60))


@pytest.mark.parametrize("body", ["not json", "", '{"body": 1}', " é😀<&>\t\x00 ", "[" * 100_000])
def test_the_members_of_an_envelope_are_read_as_they_were_written(body: str) -> None:
    content = poison.envelope(delivery(body), "not JSON", consumer="pod-1")
    body_is_bare = content == body
    members = poison.members(delivery(content))
    assert members["body"] == body
    if not body_is_bare:
        assert (members["reason"], members["dequeueCount"], members["messageId"]) == ("not JSON", 3, "8f1c")
        assert (members["insertedOn"], members["expiresOn"]) == (NOON.isoformat(), LATER.isoformat())
        assert members["consumer"] == "pod-1"
        assert datetime.fromisoformat(members["poisonedOn"]).tzinfo


def test_of_bare_content_only_body_and_time_are_known() -> None:
    content = poison.envelope(delivery("x" * BODY_MOST), "too long", consumer="pod-1")
    members = poison.members(delivery(content))
    assert members.pop("body") == "x" * BODY_MOST
    assert members.pop("poisonedOn") == NOON.isoformat()
    assert members == dict.fromkeys(["reason", "dequeueCount", "messageId", "insertedOn", "expiresOn", "consumer"])


@pytest.mark.parametrize(
    "change", [{"color": "blue"}, {"body": 7}, {"dequeueCount": float("nan")}, {"dequeueCount": True}, {"reason": None}]
)
def test_json_that_is_not_exactly_an_envelope_is_a_body(change: dict[str, object]) -> None:
    document = json.loads(poison.envelope(delivery("x"), "not JSON", consumer="pod-1"))
    content = json.dumps(document | change)
    assert poison.members(delivery(content))["body"] == content
    del document["consumer"]
    content = json.dumps(document)
    assert poison.members(delivery(content))["body"] == content


@pytest.mark.parametrize("content", ["[" * 65_536, "9" * 5000, "[]", "null", ""])
def test_content_of_every_kind_is_read_without_an_error(content: str) -> None:
    assert poison.members(delivery(content))["body"] == content


def test_a_reason_of_any_length_leaves_room_for_the_envelope() -> None:
    members = poison.members(delivery(poison.envelope(delivery("not json"), "😀" * 100_000, consumer="pod-1")))
    assert members["reason"] == "😀" * poison.REASON_MOST
    assert members["body"] == "not json"
