"""What every program does around its work: settings, log, exit code."""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from dotenv import dotenv_values

from edw import log
from edw.option import SettingsError, load
from edw.settings import IDENTITY_VARIABLES, ServiceSettings

DONE = 0
FAILED = 1
WRONG_SETTINGS = 2

S = TypeVar("S", bound=ServiceSettings)


class Aborted(Exception):
    """Raised by a program that ends before its work is done; the text is one line for a person."""


def main(settings_class: type[S], run: Callable[[S], Coroutine[Any, Any, int]]) -> int:
    """Runs the program with settings from the command line, the environment and .env; its exit code."""
    try:
        _read_dotenv()
        settings = load(settings_class, sys.argv[1:], os.environ, epilog=IDENTITY_VARIABLES)
        log.configure(settings.log_level, settings.log_format)
        return asyncio.run(_to_the_end(run(settings)))
    except (SettingsError, Aborted) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return FAILED if isinstance(error, Aborted) else WRONG_SETTINGS


async def _to_the_end(running: Coroutine[Any, Any, int]) -> int:
    code = await running
    if threading.active_count() > 1:
        # Everything is done or given back: a thread that still resolves a name, or a handler's, holds up nothing.
        sys.stdout.flush()
        logging.shutdown()
        os._exit(code)
    return code


def _read_dotenv() -> None:
    try:
        for name, value in dotenv_values(Path.cwd() / ".env").items():
            if value and not os.environ.get(name):
                os.environ[name] = value  # where azure-identity finds its own, too
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f".env cannot be read: {error}") from None
