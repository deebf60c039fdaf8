"""The stored entity."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from azure.data.tables import EdmType

from edw import entity
from edw.entity import PROPERTY_MOST, Value
from edw.message import Message

SENT = datetime(2026, 11, 23, 12, 0, 0, 500000, tzinfo=UTC)
PROCESSED = datetime(2026, 11, 23, 12, 0, 2, tzinfo=UTC)


def built(msg: str = "hello", seconds: float = 1.5, **result: Value | None) -> dict[str, object]:
    return entity.build(Message("8f1c", msg, "2026-11-23T12:00:00.5Z", SENT, {}), PROCESSED, seconds, result)


def test_an_entity_has_the_documented_properties() -> None:
    assert built() == {
        "PartitionKey": "8f1c",
        "RowKey": "1.500000",
        "data": "hello",
        "srcStamp": "2026-11-23T12:00:00.5Z",
        "dateStamp": "2026-11-23 12:00:02.000000",
        "messageProcessingTime": 1.5,
    }


@pytest.mark.parametrize(
    ("seconds", "row_key"),
    [(0.0, "0.000000"), (0.0000004, "0.000000"), (1e-5, "0.000010"), (6e10, "60000000000.000000")],
)
def test_the_row_key_is_a_plain_decimal_with_six_places(seconds: float, row_key: str) -> None:
    assert built(seconds=seconds)["RowKey"] == row_key


@pytest.mark.parametrize(
    "msg",
    [
        "",
        "a" * PROPERTY_MOST,
        "a" * (PROPERTY_MOST + 1),
        "a" * 65_500,
        "😀" * (PROPERTY_MOST // 2),
        "😀" * (PROPERTY_MOST // 2 + 1),
        "a" + "😀" * PROPERTY_MOST,  # a pair of surrogates lies across every limit
        "é" * 3 * PROPERTY_MOST,
    ],
    ids=len,
)
def test_a_msg_of_any_length_is_stored_whole_in_properties_of_legal_size(msg: str) -> None:
    stored = built(msg)
    assert entity.data(stored) == msg
    parts = [value for name, value in stored.items() if name.startswith("data")]
    assert all(len(str(part).encode("utf-16-le")) // 2 <= PROPERTY_MOST for part in parts)


def test_a_msg_that_fits_is_stored_in_one_property() -> None:
    assert "data_2" not in built("a" * PROPERTY_MOST)


def test_what_a_handler_returns_is_stored_beside_the_documented_properties() -> None:
    receipt = UUID("9b2c1a52-0c4e-4d6c-8f61-0b9c2f1d7a11")
    stored = built(status="paid", cents=3_000_000_000, rate=0.5, is_new=True, at=SENT, raw=b"\x00", receipt=receipt)
    assert stored.items() >= built().items()
    assert stored["cents"] == (3_000_000_000, EdmType.INT64)
    assert (
        stored.items()
        >= {
            "status": "paid",
            "rate": 0.5,
            "is_new": True,
            "at": SENT,
            "raw": b"\x00",
            "receipt": receipt,
        }.items()
    )


def test_a_long_string_of_a_handler_is_stored_whole() -> None:
    stored = built(note="n" * (PROPERTY_MOST + 1))
    assert (stored["note"], stored["note_2"]) == ("n" * PROPERTY_MOST, "n")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RowKey", "1"),
        ("data", "x"),
        ("data_2", "x"),
        ("not-a-name", "x"),
        ("1st", "x"),
        ("n" * 256, "x"),
        ("many", 2**63),
        ("list", [1]),
        ("half", "\ud83d"),
        ("naive", datetime(2026, 11, 23)),  # noqa: DTZ001
    ],
)
def test_what_cannot_be_stored_is_refused_by_name(name: str, value: Value) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^handle returned '{name}'"):
        built(**{name: value})


def test_a_property_that_is_none_is_left_out() -> None:
    assert built(coupon=None) == built()


def test_a_rest_of_a_long_text_is_not_replaced() -> None:
    with pytest.raises(ValueError, match="which is also the rest of a longer text"):
        built(note="n" * (PROPERTY_MOST + 1), note_2="mine")
