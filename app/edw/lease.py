"""A consumer's right to work on a message: the visibility timeout, seen from the consumer's side."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Lease:
    """Held from before the service was asked for it until `ends`, in seconds of the monotonic clock.

    The service counts from when it answered, which is later: the lease ends here before it ends there.
    """

    pop_receipt: str = field(repr=False)
    ends: float

    def remaining(self) -> float:
        """Seconds left; negative once it is over."""
        return self.ends - time.monotonic()
