"""The entity that is stored for a message, one per message."""

from datetime import datetime
from typing import Any

from edw.message import Message, stamp

PROPERTY_MOST = 32_768
"""UTF-16 units of a string property (64 KiB):
learn.microsoft.com/rest/api/storageservices/understanding-the-table-service-data-model"""


def build(message_id: str, message: Message, processed_at: datetime, seconds: float) -> dict[str, Any]:
    """The entity for a message that took `seconds` from its source stamp until it was processed."""
    return {
        "PartitionKey": message_id,
        "RowKey": f"{seconds:.6f}",
        **_properties("data", message.msg),
        "srcStamp": message.src_stamp,
        "dateStamp": stamp(processed_at),
        "messageProcessingTime": seconds,
    }


def data(entity: dict[str, Any]) -> str:
    """The whole `msg` of a stored entity."""
    parts, name = [], "data"
    while name in entity:
        parts.append(entity[name])
        name = f"data_{len(parts) + 1}"
    return "".join(parts)


def _properties(name: str, value: str) -> dict[str, str]:
    """`value` as `name` and, where it is longer than a property may be, `name_2`, `name_3` and so on."""
    parts = _split(value)
    return {name if number == 1 else f"{name}_{number}": part for number, part in enumerate(parts, 1)}


def _split(value: str) -> list[str]:
    if len(value) * 2 <= PROPERTY_MOST:  # short enough even if every character takes two units
        return [value]
    units, parts, start = value.encode("utf-16-le"), [], 0
    while start < len(units):
        end = start + 2 * PROPERTY_MOST
        if end < len(units) and 0xD8 <= units[end - 1] <= 0xDB:
            end -= 2  # never between the halves of a surrogate pair
        parts.append(units[start:end].decode("utf-16-le"))
        start = end
    return parts
