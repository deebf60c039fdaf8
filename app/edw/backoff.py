"""Waits that grow: between polls of an empty queue, between attempts at a service that does not answer."""

import random


class Backoff:
    """Doubles from `least` to `most` seconds, each wait 20 % longer or shorter by chance, never above `most`.

    The chance keeps replicas that fell idle, or lost a service, at the same moment from acting in step.
    """

    def __init__(self, least: float, most: float) -> None:
        self._least = least
        self._most = most
        self._next = least

    def reset(self) -> None:
        self._next = self._least

    def next(self) -> float:
        wait = min(self._next * random.uniform(0.8, 1.2), self._most)
        self._next = min(self._next * 2, self._most)
        return wait
