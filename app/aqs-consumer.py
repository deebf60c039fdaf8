#!/usr/bin/env python3
"""The consumer program; `--help` explains every setting."""

import sys

from edw.startup import end_at_once_on_signals

end_at_once_on_signals()

from edw.consumer import main  # noqa: E402  (loading it takes a while, in which a signal must work too)
from handler import handle  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(handle))
