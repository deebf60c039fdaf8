"""The entity that is stored for a message, one per message."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from azure.data.tables import EdmType, EntityProperty

from edw.message import Message, is_unicode, stamp

PROPERTY_MOST = 32_768
"""UTF-16 units of a string property (64 KiB):
learn.microsoft.com/rest/api/storageservices/understanding-the-table-service-data-model"""
# The same page, on names of properties.
_NAME = re.compile(r"[^\W\d]\w{0,254}")
_OWN = re.compile(r"PartitionKey|RowKey|Timestamp|data(_\d+)?|srcStamp|dateStamp|messageProcessingTime")

ROW_KEY = re.compile(r"\d+\.\d{6}", re.ASCII)
"""The row keys that `build` makes; what else is in a message's partition is its handler's."""

Value = str | bool | int | float | bytes | datetime | UUID
"""What a property can hold."""


def build(
    message: Message, processed_at: datetime, seconds: float, result: Mapping[str, Value | None]
) -> dict[str, Any]:
    """The entity for a message that took `seconds` from its source stamp until it was processed.

    `result` are the properties that the handler adds; those that are None are left out. Raises TypeError or
    ValueError where they cannot be stored.
    """
    return {
        "PartitionKey": message.id,
        "RowKey": f"{seconds:.6f}",
        **_strings("data", message.msg),
        "srcStamp": message.src_stamp,
        "dateStamp": stamp(processed_at),
        "messageProcessingTime": seconds,
        **_added(result),
    }


def data(entity: dict[str, Any]) -> str:
    """The whole `msg` of a stored entity."""
    parts, name = [], "data"
    while name in entity:
        parts.append(entity[name])
        name = f"data_{len(parts) + 1}"
    return "".join(parts)


def _added(result: Mapping[str, Value | None]) -> dict[str, Any]:
    if not isinstance(result, Mapping):
        raise TypeError(f"handle returned {type(result).__name__}, which is no mapping of properties")
    properties: dict[str, Any] = {}
    for name, value in result.items():
        if value is None:
            continue
        if not _NAME.fullmatch(name) or _OWN.fullmatch(name):
            raise ValueError(f"handle returned {name!r}, which is no name for a property or one of the entity's own")
        if not isinstance(value, Value):
            raise TypeError(f"handle returned {name!r} as {type(value).__name__}, which a property cannot hold")
        if name in properties:
            raise ValueError(f"handle returned {name!r}, which is also the rest of a longer text")
        if isinstance(value, datetime) and value.tzinfo is None:
            raise ValueError(f"handle returned {name!r} as a time without its zone")
        if isinstance(value, str):
            if not is_unicode(value):
                raise ValueError(f"handle returned {name!r} as text with half of a surrogate pair")
            properties |= _strings(name, value)
        elif isinstance(value, int) and not isinstance(value, bool):
            if not -(2**63) <= value < 2**63:
                raise ValueError(f"handle returned {name!r} as a number of more than 64 bits")
            # The SDK would choose 32 bits, and refuse what is more.
            properties[name] = EntityProperty(value, EdmType.INT64)
        else:
            properties[name] = value
    return properties


def _strings(name: str, value: str) -> dict[str, str]:
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
