"""How far a program is, while a block runs: log lines, or a bar for a terminal."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

LINE_EVERY = 10.0
BAR_EVERY = 0.1

Counts = Callable[[], dict[str, int]]
log = structlog.get_logger("edw")


@contextmanager
def lines(event: str, counts: Counts) -> Iterator[None]:
    """Logs the counts now and then while the block runs, if they changed."""

    async def write() -> None:
        last: dict[str, int] = counts()
        while True:
            await asyncio.sleep(LINE_EVERY)
            if (now := counts()) != last:
                log.info(event, **now)
                last = now

    writing = asyncio.create_task(write())
    try:
        yield
    finally:
        writing.cancel()


@contextmanager
def bar(event: str, count: Callable[[], int], total: int | None) -> Iterator[None]:
    """Draws a bar on standard error while the block runs; log lines go above it."""

    async def draw() -> None:
        while True:
            drawn.update(count() - drawn.n)
            await asyncio.sleep(BAR_EVERY)

    with logging_redirect_tqdm(), tqdm(desc=event, total=total, unit=" messages") as drawn:
        drawing = asyncio.create_task(draw())
        try:
            yield
        finally:
            drawing.cancel()
            drawn.update(count() - drawn.n)
