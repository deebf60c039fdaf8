"""Stopping on a signal: the first SIGTERM or SIGINT asks, a second one ends the process at once."""

import asyncio
import os
import signal
from contextlib import suppress

import structlog

from edw.startup import SIGNALS

log = structlog.get_logger("edw")


class Stop(asyncio.Event):
    """Set once the program is asked to stop."""

    async def sleep(self, seconds: float) -> None:
        """Sleeps for `seconds`, or until the program is asked to stop."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.wait(), seconds)

    async def or_done(self, task: asyncio.Task[None], within: float | None = None) -> None:
        """Returns when the task has ended, after `within` seconds, or when the program is asked to stop."""
        stopped = asyncio.create_task(self.wait())
        await asyncio.wait({task, stopped}, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()


def on_signals() -> Stop:
    """A Stop that the process's signals set."""
    stop = Stop()
    loop = asyncio.get_running_loop()
    signals = 0

    def ask(number: int) -> None:
        log.info("stopping", signal=signal.Signals(number).name)
        stop.set()

    def received(number: int, _: object) -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            os._exit(1)  # not by way of the event loop, which a handler may block
        loop.call_soon_threadsafe(ask, number)

    for number in SIGNALS:
        signal.signal(number, received)
    return stop
