"""Calls the handler of app/handler.py, whether it is synchronous or asynchronous."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from edw.entity import Value
from edw.message import Message

Result = Mapping[str, Value | None] | None
Synchronous = Callable[[Message], Result]
Asynchronous = Callable[[Message], Awaitable[Result]]
Handler = Synchronous | Asynchronous


class NotContained(Exception):
    """Raised in the place of what would end more than the work on one message: an exit, a cancellation from within."""


def asynchronous(handle: Handler, at_once: int) -> Asynchronous:
    """What calls `handle` on the event loop or, if it is synchronous and may block, in up to `at_once` threads.

    Whatever comes out of it is an Exception, or a cancellation that somebody asked for.
    """
    is_asynchronous = inspect.iscoroutinefunction(handle)
    on_loop = cast(Asynchronous, handle) if is_asynchronous else _in_threads(cast(Synchronous, handle), at_once)

    async def call(message: Message) -> Result:
        task = asyncio.current_task()
        try:
            return await on_loop(message)
        except BaseException as error:
            if task and task.cancelling():
                raise asyncio.CancelledError from error
            if isinstance(error, Exception):
                raise
            raise NotContained(f"handle ended with {type(error).__name__}: {error}") from error

    return call


def _in_threads(handle: Synchronous, at_once: int) -> Asynchronous:
    threads = ThreadPoolExecutor(at_once, thread_name_prefix="handle")

    def contained(message: Message) -> Result:
        try:
            return handle(message)
        except (StopIteration, SystemExit, KeyboardInterrupt) as error:  # which no future can hold
            raise NotContained(f"handle ended with {type(error).__name__}: {error}") from error

    async def in_thread(message: Message) -> Result:
        result = await asyncio.get_running_loop().run_in_executor(threads, contained, message)
        return await result if inspect.isawaitable(result) else result  # of a callable object, for one

    return in_thread
