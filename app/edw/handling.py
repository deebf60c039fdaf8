"""Calls the handler of app/handler.py, whether it is synchronous or asynchronous."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from edw.entity import Value
from edw.message import Message

Result = Mapping[str, Value] | None
Handler = Callable[[Message], Result] | Callable[[Message], Awaitable[Result]]


def asynchronous(handle: Handler, at_once: int) -> Callable[[Message], Awaitable[Result]]:
    """`handle` if it is asynchronous; else what runs it in threads, so that it may block, in up to `at_once`."""
    if inspect.iscoroutinefunction(handle):
        return handle
    threads = ThreadPoolExecutor(at_once, thread_name_prefix="handle")

    async def in_thread(message: Message) -> Result:
        result: Result = await asyncio.get_running_loop().run_in_executor(threads, handle, message)  # type: ignore[arg-type]
        return result

    return in_thread
