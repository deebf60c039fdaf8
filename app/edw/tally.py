"""What a consumer did, for its last line."""

import random
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

SAMPLE = 10_000
"""Processing times kept for the percentiles: a uniform sample, so that memory stays flat however many come."""


@dataclass(slots=True)
class Tally:
    """Counts of one run. `received` counts deliveries, the others what became of them; a message that is stored
    and whose lease is lost before it is deleted counts as both."""

    received: int = 0
    stored: int = 0
    already_stored: int = 0
    poisoned: int = 0
    failed: int = 0
    renewed: int = 0
    released: int = 0
    lease_lost: int = 0
    clock_behind: int = 0
    _times: list[float] = field(default_factory=list)

    def add_stored(self, seconds: float) -> None:
        """Counts a stored message and its processing time."""
        self.stored += 1
        if len(self._times) < SAMPLE:
            self._times.append(seconds)
        elif (place := random.randrange(self.stored)) < SAMPLE:
            self._times[place] = seconds

    def counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__ if not name.startswith("_")}

    def summary(self) -> dict[str, Any]:
        """The counts, and p50, p95 and p99 of the processing time in seconds."""
        return self.counts() | percentiles(self._times)


def percentiles(times: list[float]) -> dict[str, float | None]:
    """p50, p95 and p99; None without times."""
    if not times:
        return {"p50": None, "p95": None, "p99": None}
    cuts = quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    return {f"p{percent}": round(cuts[percent - 1], 6) for percent in (50, 95, 99)}
