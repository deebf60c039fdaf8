"""Calls the handler of app/handler.py, whether it is synchronous or asynchronous."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from edw.entity import Value
from edw.message import Message

Result = Mapping[str, Value] | None
Synchronous = Callable[[Message], Result]
Asynchronous = Callable[[Message], Awaitable[Result]]
Handler = Synchronous | Asynchronous


class CancelledFromWithin(Exception):
    """Raised when a handler ends as if it were cancelled, which nobody asked for."""


def asynchronous(handle: Handler, at_once: int) -> Asynchronous:
    """What calls `handle` on the event loop or, if it is synchronous and may block, in up to `at_once` threads."""
    is_asynchronous = inspect.iscoroutinefunction(handle)
    on_loop = cast(Asynchronous, handle) if is_asynchronous else _in_threads(cast(Synchronous, handle), at_once)

    async def call(message: Message) -> Result:
        task = asyncio.current_task()
        try:
            return await on_loop(message)
        except asyncio.CancelledError:
            if task and task.cancelling():
                raise
            raise CancelledFromWithin("something that the handler awaits was cancelled") from None

    return call


def _in_threads(handle: Synchronous, at_once: int) -> Asynchronous:
    threads = ThreadPoolExecutor(at_once, thread_name_prefix="handle")

    async def in_thread(message: Message) -> Result:
        return await asyncio.get_running_loop().run_in_executor(threads, handle, message)

    return in_thread
