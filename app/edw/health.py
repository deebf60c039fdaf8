"""The consumer's probes: /livez answers while the event loop turns, /readyz while the services answer."""

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from edw.option import SettingsError


@asynccontextmanager
async def served(port: int, is_ready: Callable[[], bool]) -> AsyncIterator[None]:
    """Serves the probes on `port` of every interface. Raises SettingsError where the port cannot be had."""

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ready\n") if is_ready() else web.Response(text="not ready\n", status=503)

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, port=port).start()
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
            raise SettingsError(f"EDW_HTTP_PORT: port {port} {why}") from None
        yield
    finally:
        await runner.cleanup()
