"""One request to a service: bounded in time, its failure said in one line."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from edw.errors import ServiceError, Unavailable, translated


@asynccontextmanager
async def request(
    doing: str, seconds: float, translate: Callable[[Exception, str], ServiceError] = translated
) -> AsyncIterator[None]:
    """A block that sends one request. `doing` says what is asked of the service.

    Raises what `translate` makes of a failure, and Unavailable after `seconds`. The SDK's own timeouts do not
    bound a request: each part of an answer, the name's resolution, the wait for a token has its own or none.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Unavailable(f"{doing}: no answer within {seconds:g} s", kind="Timeout") from None
    except Exception as error:
        # Not the SDK's errors alone: an answer that is not the service's, as a proxy's page, ends in others.
        raise translate(error, doing) from error
