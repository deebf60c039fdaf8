"""An Azure Storage Queue: send, receive under a lease, delete, make visible again, count."""

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import cast

from azure.core.exceptions import AzureError
from azure.storage.queue import QueueMessage
from azure.storage.queue.aio import QueueClient

from edw.errors import LeaseLost, Unavailable, exists_or_forbidden, unavailable
from edw.lease import Lease
from edw.request import request

PAGE_MOST = 32
"""Messages of one receive: learn.microsoft.com/rest/api/storageservices/get-messages"""


@dataclass(slots=True, eq=False)
class Delivery:
    """One delivery of a message. `content` is the text in the queue, before any decoding."""

    message_id: str
    content: str = field(repr=False)
    dequeue_count: int
    inserted_on: datetime
    expires_on: datetime
    lease: Lease
    delete_had_no_answer: bool = False


class Queue:
    """Every method sends one request of at most `request_timeout` seconds, and raises an error of edw.errors
    when the service does not do what it is asked."""

    def __init__(self, client: QueueClient, request_timeout: float) -> None:
        self._client = client
        self._request_timeout = request_timeout
        self.name = client.queue_name

    async def create(self) -> bool:
        """Creates the queue; False where it exists, or may exist but the role does not allow to create it."""
        async with request(f"create queue {self.name}", self._request_timeout, unavailable):
            try:
                await self._client.create_queue()
            except AzureError as error:
                if exists_or_forbidden(error):
                    return False
                raise
        return True

    async def length(self) -> int:
        """How many messages there are, leased ones included; sometimes too high, never too low.

        learn.microsoft.com/rest/api/storageservices/get-queue-metadata
        """
        async with request(f"count {self.name}", self._request_timeout, unavailable):
            return (await self._client.get_queue_properties()).approximate_message_count or 0

    async def receive(self, at_most: int, visibility_timeout: int) -> list[Delivery]:
        """One page of up to `at_most` messages, leased for `visibility_timeout` seconds."""
        asked_at = time.monotonic()
        async with request(f"receive from {self.name}", self._request_timeout, unavailable):
            # Without max_messages the iterator goes on until the queue is empty.
            pages = self._client.receive_messages(
                max_messages=at_most, messages_per_page=at_most, visibility_timeout=visibility_timeout
            ).by_page()
            async for page in pages:
                return [
                    _delivery(message, Lease(message.pop_receipt or "", asked_at + visibility_timeout))
                    async for message in page
                ]
        return []

    async def probe(self) -> None:
        """Does nothing but find out whether the service answers; no delivery is counted."""
        async with request(f"peek into {self.name}", self._request_timeout, unavailable):
            await self._client.peek_messages(max_messages=1)

    async def renew(self, delivery: Delivery, visibility_timeout: int) -> None:
        """Makes the lease last `visibility_timeout` seconds from now."""
        asked_at = time.monotonic()
        async with request(f"renew lease in {self.name}", self._request_timeout):
            renewed = await self._client.update_message(
                delivery.message_id, delivery.lease.pop_receipt, visibility_timeout=visibility_timeout
            )
        delivery.lease.renew(cast(str, renewed.pop_receipt), asked_at + visibility_timeout)

    async def delete(self, delivery: Delivery) -> None:
        try:
            async with request(f"delete from {self.name}", self._request_timeout):
                await self._client.delete_message(delivery.message_id, delivery.lease.pop_receipt)
        except Unavailable:
            delivery.delete_had_no_answer = True
            raise
        except LeaseLost:
            if not delivery.delete_had_no_answer:  # else the service did it, and its answer was lost
                raise

    async def release(self, delivery: Delivery, after: int = 0) -> None:
        """Makes the message visible again, `after` seconds from now; its lease is over."""
        async with request(f"release to {self.name}", self._request_timeout):
            await self._client.update_message(delivery.message_id, delivery.lease.pop_receipt, visibility_timeout=after)

    async def send(self, content: str, time_to_live: int | None = None) -> None:
        """Puts a message; `time_to_live` in seconds, -1 for no end, None for the service's 7 days."""
        async with request(f"send to {self.name}", self._request_timeout):
            await self._client.send_message(content, time_to_live=time_to_live)


def _delivery(message: QueueMessage, lease: Lease) -> Delivery:
    # The SDK's type is also that of messages to send, so that all it says of itself is optional.
    return Delivery(
        message.id,
        cast(str, message.content),
        cast(int, message.dequeue_count),
        cast(datetime, message.inserted_on),
        cast(datetime, message.expires_on),
        lease,
    )
