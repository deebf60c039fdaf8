"""A consumer's right to work on a message: the visibility timeout, seen from the consumer's side."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from edw.errors import LeaseLost


@dataclass(slots=True)
class Lease:
    """Held from before the service was asked for it until `ends`, in seconds of the monotonic clock.

    The service counts from when it answered, which is later: the lease ends here before it ends there.
    """

    pop_receipt: str = field(repr=False)
    ends: float
    _block: asyncio.Timeout | None = field(default=None, init=False, repr=False)

    def remaining(self) -> float:
        """Seconds left; negative once it is over."""
        return self.ends - time.monotonic()

    def renew(self, pop_receipt: str, ends: float) -> None:
        self.pop_receipt = pop_receipt
        self.ends = ends
        if self._block and not self._block.expired():
            self._block.reschedule(ends)

    @asynccontextmanager
    async def lasting(self) -> AsyncIterator[None]:
        """A block that is cancelled when the lease ends, however often it was renewed. Raises LeaseLost then."""
        self._block = asyncio.timeout_at(self.ends)  # the event loop's clock is the monotonic one
        try:
            async with self._block:
                yield
        except TimeoutError:
            if self._block.expired():
                raise LeaseLost("the lease ended while the message was worked on") from None
            raise  # one of the block's own
        finally:
            self._block = None
