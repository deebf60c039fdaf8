"""The stored entity."""

from datetime import UTC, datetime

import pytest

from edw import entity
from edw.entity import PROPERTY_MOST
from edw.message import Message

SENT = datetime(2026, 11, 23, 12, 0, 0, 500000, tzinfo=UTC)
PROCESSED = datetime(2026, 11, 23, 12, 0, 2, tzinfo=UTC)


def built(msg: str = "hello", seconds: float = 1.5) -> dict[str, object]:
    return entity.build("8f1c", Message(msg, "2026-11-23T12:00:00.5Z", SENT), PROCESSED, seconds)


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
