"""The wire format: a JSON object with `msg` and `srcStamp`, as the AWS workload writes it."""

import base64
import binascii
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

BODY_MOST = 65_536
"""Bytes of a message as sent, encoding included: learn.microsoft.com/rest/api/storageservices/put-message"""

STAMP = "%Y-%m-%d %H:%M:%S.%f"
_STAMP_SHAPE = re.compile(r"\d{4}-\d\d-\d\d[ Tt]\d\d:\d\d(:\d\d([.,]\d{1,9})?)?([Zz]|[+-]\d\d:?\d\d)?", re.ASCII)
_JSON_NAMES = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}


class Unprocessable(Exception):
    """Raised when a message can never be processed: it goes to the poison queue at once, with the text as reason.

    The reason is logged, so it does not repeat the message's content.
    """


@dataclass(frozen=True, slots=True)
class Message:
    """What a message says.

    `id` is the queue's own, the same at every delivery of the message; `src_stamp` is as received, `sent_at` the
    same time with its zone; `document` is the whole JSON object, with the members the workflow does not know.
    """

    id: str
    msg: str
    src_stamp: str
    sent_at: datetime
    document: dict[str, Any]


def compose(msg: str, at: datetime) -> str:
    """The body of a new message."""
    return serialize({"msg": msg, "srcStamp": stamp(at)})


def serialize(document: Any) -> str:
    """JSON. Raises ValueError for numbers that JSON does not have, RecursionError for what is nested too deep."""
    # Pure ASCII: control characters and what XML forbids travel escaped, whatever the service's parser does.
    return json.dumps(document, ensure_ascii=True, allow_nan=False)


def parse(message_id: str, body: str) -> Message:
    """What `body` says. Raises Unprocessable."""
    try:
        document = json.loads(body)
    except json.JSONDecodeError as error:
        hint = "; it looks like Base64: see EDW_MESSAGE_ENCODING" if _is_base64_json(body) else ""
        raise Unprocessable(f"not JSON: {error.msg} at character {error.pos}{hint}") from None
    except (ValueError, RecursionError) as error:  # integers of thousands of digits, thousands of brackets
        raise Unprocessable(f"not JSON that can be read: {type(error).__name__}") from None
    if not isinstance(document, dict):
        raise Unprocessable(f"not a JSON object but {_name(document)}")
    src_stamp = _string(document, "srcStamp")
    return Message(message_id, _string(document, "msg"), src_stamp, parse_stamp(src_stamp), document)


def stamp(at: datetime) -> str:
    """A time as it stands in `srcStamp` and `dateStamp`: UTC."""
    return at.astimezone(UTC).strftime(STAMP)


def parse_stamp(src_stamp: str) -> datetime:
    """The time that a stamp of any sender means. Raises Unprocessable."""
    try:
        if not _STAMP_SHAPE.fullmatch(src_stamp):
            raise ValueError
        at = datetime.fromisoformat(src_stamp.upper())
    except ValueError:
        raise Unprocessable("srcStamp is not a time like 2026-11-23 12:00:00.123456 or ISO 8601") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def encode(body: str, encoding: str) -> str:
    """The text that goes into the queue."""
    return base64.b64encode(body.encode()).decode() if encoding == "base64" else body


def decode(content: str, encoding: str) -> str:
    """The body that `content`, the text from the queue, stands for. Raises Unprocessable."""
    if encoding == "text":
        return content
    try:
        return base64.b64decode(content, validate=True).decode()
    except (binascii.Error, ValueError):  # UnicodeDecodeError and non-ASCII characters are ValueErrors
        raise Unprocessable("not Base64 of UTF-8 text, which EDW_MESSAGE_ENCODING asks for") from None


def _string(document: dict[str, Any], member: str) -> str:
    if member not in document:
        raise Unprocessable(f"{member} is missing")
    value = document[member]
    if not isinstance(value, str):
        raise Unprocessable(f"{member} is not a string but {_name(value)}")
    if not is_unicode(value):
        raise Unprocessable(f"{member} is not Unicode text: it holds half of a surrogate pair")
    return value


def is_unicode(value: str) -> bool:
    """Whether a service can take the text: not with half of a surrogate pair, which JSON and Python can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(value: Any) -> str:
    return _JSON_NAMES.get(type(value), "a number")


def _is_base64_json(body: str) -> bool:
    try:
        return base64.b64decode(body, validate=True).lstrip().startswith(b"{")
    except (binascii.Error, ValueError):
        return False
