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

    async def or_done(self, task: asyncio.Task[None]) -> None:
        """Returns when the task has ended, or when the program is asked to stop."""
        stopped = asyncio.create_task(self.wait())
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()


def on_signals() -> Stop:
    """A Stop that the process's signals set."""
    stop = Stop()
    signals = 0

    def received(number: signal.Signals) -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            os._exit(1)
        log.info("stopping", signal=number.name)
        stop.set()

    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, received, number)
    return stop
