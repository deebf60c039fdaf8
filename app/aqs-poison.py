#!/usr/bin/env python3
"""The poison queue's program; `--help` explains every command and setting."""

import sys

from edw.startup import end_at_once_on_signals

end_at_once_on_signals(exit_code=1)

from edw.redrive import main  # noqa: E402  (loading it takes a while, in which a signal must work too)

if __name__ == "__main__":
    sys.exit(main())
