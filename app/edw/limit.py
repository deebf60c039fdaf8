"""How much is done at once while a service throttles."""

import time

ONE_MOMENT = 1.0
"""Seconds within which several refusals are one: what was under way together is refused together."""


class Limit:
    """Halved when a service throttles, grown back by what succeeds: additive increase, multiplicative decrease,
    with which replicas that know nothing of each other come to share what the service can do."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._now = float(most)
        self._shrunk_at = float("-inf")

    @property
    def now(self) -> int:
        return int(self._now)

    def shrink(self) -> None:
        if time.monotonic() - self._shrunk_at >= ONE_MOMENT:
            self._shrunk_at = time.monotonic()
            self._now = max(1.0, self._now / 2)

    def grow(self) -> None:
        """After a success: about one more for each round of as many as are allowed at once."""
        self._now = min(float(self._most), self._now + 1 / self._now)
