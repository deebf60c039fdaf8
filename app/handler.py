"""Your processing: the consumer calls `handle` for every message and stores what it returns with the message.

Replace its body. It gets an edw.message.Message:

    message.id         the same at every delivery of the message; another one where the same thing is sent twice
                       or put back from the poison queue, so that for money a key from the document is better
    message.msg        the text
    message.sent_at    when it was sent, a datetime
    message.document   the whole JSON object, with members of your own

It returns properties to add to the message's entity (strings, booleans, numbers, bytes, datetimes with their zone,
UUIDs) or None. A string that is longer than a property may be goes on in `name_2`, `name_3` and so on.

- It must be idempotent. A message is handled again when a consumer dies or loses its lease before the entity is
  stored, and two consumers may be at it for as long as a thread goes on that nobody waits for any more.
- It may be slow: while it runs, the message's lease is renewed. `async def` runs on the event loop and must not block
  it; `def` runs in a thread and may.
- It raises edw.message.Unprocessable("reason") for what can never succeed: the message goes to the poison queue at
  once.
- Any other exception is a failure that may pass: the message is delivered again after 2 s, 4 s, 8 s and so on up to a
  minute, and goes to the poison queue when that happens at the delivery EDW_MAX_DEQUEUE_COUNT allows as the last.
- It is cancelled when the lease is lost, and EDW_STOP_TIMEOUT seconds after the consumer is asked to stop; the message
  is then delivered again, which counts. A thread cannot be cancelled: what it returns then is dropped.
"""

from edw.handling import Result
from edw.message import Message


async def handle(message: Message) -> Result:  # noqa: ARG001  the workflow itself only measures and stores
    return None
