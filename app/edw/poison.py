"""The poison queue's messages: what can never succeed, with the reason."""

from datetime import UTC, datetime

from edw.message import BODY_MOST, serialize
from edw.queue import Delivery


def envelope(delivery: Delivery, reason: str, consumer: str) -> str:
    """The poison message for a delivery: a JSON object with the original content and why it is here.

    Content that the envelope would make too large for a message is returned bare.
    """
    wrapped = serialize(
        {
            "body": delivery.content,
            "reason": reason,
            "dequeueCount": delivery.dequeue_count,
            "messageId": delivery.message_id,
            "insertedOn": delivery.inserted_on.isoformat(),
            "expiresOn": delivery.expires_on.isoformat(),
            "poisonedOn": datetime.now(UTC).isoformat(),
            "consumer": consumer,
        }
    )
    return wrapped if len(wrapped) <= BODY_MOST else delivery.content
