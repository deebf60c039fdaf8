"""What must be there before anything else is loaded; so this imports next to nothing."""

import os
import signal

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def end_at_once_on_signals(exit_code: int = 0) -> None:
    """For the time until the program handles signals itself, in which nothing has begun.

    As PID 1 a process without a handler ignores SIGTERM.
    """
    for number in SIGNALS:
        signal.signal(number, lambda *_: os._exit(exit_code))
