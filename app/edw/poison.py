"""The poison queue's messages: what can never succeed, with the reason."""

import json
from datetime import UTC, datetime
from typing import Any

from edw.message import BODY_MOST, serialize
from edw.queue import Delivery

REASON_MOST = 1000
"""Characters of a reason: an error's text can be any length, and must not keep the envelope from being made."""

_MEMBERS = {
    "body": str,
    "reason": str,
    "dequeueCount": int,
    "messageId": str,
    "insertedOn": str,
    "expiresOn": str,
    "poisonedOn": str,
    "consumer": str,
}


def envelope(delivery: Delivery, reason: str, consumer: str) -> str:
    """The poison message for a delivery: a JSON object with the original content and why it is here.

    Content that the envelope would make too large for a message is returned bare.
    """
    wrapped = serialize(
        {
            "body": delivery.content,
            "reason": reason[:REASON_MOST],
            "dequeueCount": delivery.dequeue_count,
            "messageId": delivery.message_id,
            "insertedOn": delivery.inserted_on.isoformat(),
            "expiresOn": delivery.expires_on.isoformat(),
            "poisonedOn": datetime.now(UTC).isoformat(),
            "consumer": consumer,
        }
    )
    return wrapped if len(wrapped) <= BODY_MOST else delivery.content


def members(delivery: Delivery) -> dict[str, Any]:
    """The members of the envelope that a delivery of the poison queue is.

    Of bare content only the body is known, and the time from the poison queue itself; the others are None.
    """
    try:
        document = json.loads(delivery.content)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict) and {name: type(value) for name, value in document.items()} == _MEMBERS:
        return document
    known = {"body": delivery.content, "poisonedOn": delivery.inserted_on.isoformat()}
    return dict.fromkeys(_MEMBERS) | known
