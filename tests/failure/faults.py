"""Proxies before the queue and the table service, and the lease that consumers have meanwhile."""

from dataclasses import dataclass

from proxy import Fault, Proxy

LEASE = 5
"""Seconds: the shortest a consumer takes."""


@dataclass
class Faults:
    """What breaks on the way between the programs and the services."""

    queue: Proxy
    table: Proxy

    def breaks(self, operation: str, fault: Fault, times: int | None = None) -> None:
        """As Proxy.breaks, whichever service the operation belongs to."""
        self.queue.breaks(operation, fault, times)
        self.table.breaks(operation, fault, times)

    def mend(self) -> None:
        self.queue.mend()
        self.table.mend()

    def seen(self, operation: str) -> int:
        """Requests for it."""
        seen = self.queue.seen + self.table.seen
        return sum(times for name, times in seen.items() if name.startswith(operation))
