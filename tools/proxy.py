"""A proxy in front of a storage service that breaks what passes: connections are cut, answers lost, time is lost.

async with Proxy(service.table_endpoint).listening() as proxy:
    proxy.breaks("insert", lose_answer, times=1)
    …a client of proxy.endpoint…
"""

import asyncio
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import aiohttp
from aiohttp import web
from yarl import URL

from azurite import Certificate

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


@dataclass(frozen=True)
class Answer:
    """What a service answers."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    def response(self) -> web.Response:
        return web.Response(status=self.status, headers=self.headers, body=self.body)


class Exchange:
    """One request on its way through a proxy."""

    def __init__(self, proxy: "Proxy", request: web.BaseRequest) -> None:
        self._proxy = proxy
        self.request = request

    async def forward(self) -> Answer:
        """Hands the request on to the service, which does what it asks."""
        return await self._proxy.forward(self.request)

    def cut(self) -> web.Response:
        """Resets the client's connection, as a firewall does that has forgotten it."""
        transport = self.request.transport
        if transport:
            raw: socket.socket = transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        return web.Response()  # goes nowhere


Fault = Callable[[Exchange], Awaitable[web.Response]]


async def reset(exchange: Exchange) -> web.Response:
    """The request is lost and its connection reset."""
    return exchange.cut()


async def lose_answer(exchange: Exchange) -> web.Response:
    """The service does what it is asked, and nobody gets to know."""
    await exchange.forward()
    return exchange.cut()


async def truncate(exchange: Exchange) -> web.Response:
    """The answer breaks off in the middle."""
    answer = await exchange.forward()
    transport = exchange.request.transport
    if transport:
        head = f"HTTP/1.1 {answer.status} \r\nContent-Length: {len(answer.body)}\r\n\r\n".encode()
        whole = head + answer.body
        transport.write(whole[: len(whole) // 2])
        transport.close()
    return web.Response()


async def black_hole(exchange: Exchange) -> web.Response:
    """The request is lost and its connection stays open."""
    await asyncio.Event().wait()
    return exchange.cut()


def delay(seconds: float) -> Fault:
    """The request arrives late."""

    async def late(exchange: Exchange) -> web.Response:
        await asyncio.sleep(seconds)
        return (await exchange.forward()).response()

    return late


def hold(released: asyncio.Event) -> Fault:
    """The service does what it is asked, and the answer waits."""

    async def held(exchange: Exchange) -> web.Response:
        answer = await exchange.forward()
        await released.wait()
        return answer.response()

    return held


def refuse(status: int, code: str, **headers: str) -> Fault:
    """The service answers with an error of its own and does nothing."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()} | {"x-ms-error-code": code}
    body = f"<?xml version='1.0' encoding='utf-8'?><Error><Code>{code}</Code><Message>Refused.</Message></Error>"
    document = f'{{"odata.error": {{"code": "{code}", "message": {{"lang": "en-US", "value": "Refused."}}}}}}'

    async def refused(exchange: Exchange) -> web.Response:
        await exchange.request.read()
        is_table = "json" in exchange.request.headers.get("Accept", "")
        kind = "application/json" if is_table else "application/xml"
        return Answer(status, sent | {"Content-Type": kind}, (document if is_table else body).encode()).response()

    return refused


@dataclass
class _Rule:
    operation: str
    fault: Fault
    times: int | None

    def applies(self, operation: str) -> bool:
        return operation.startswith(self.operation) and self.times != 0

    def use(self) -> Fault:
        if self.times:
            self.times -= 1
        return self.fault


class Proxy:
    """Hands everything on to the service at `endpoint`, but for what it is told to break.

    Before a service that speaks HTTPS it shows the same certificate.
    """

    def __init__(self, endpoint: str, certificate: Certificate | None = None) -> None:
        self._target = URL(endpoint)
        self._certificate = certificate
        self._rules: list[_Rule] = []
        self._session: aiohttp.ClientSession
        self.endpoint = ""
        self.port = 0
        self.seen: Counter[str] = Counter()
        """Requests by operation, broken ones included."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Self]:
        runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=0.1)
        await runner.setup()
        shown = trusted = None
        if self._certificate:
            shown = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            shown.load_cert_chain(*self._certificate)
            trusted = ssl.create_default_context(cafile=self._certificate.chain)
        connector = aiohttp.TCPConnector(limit=0, force_close=True, ssl=trusted or True)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._session:
            try:
                await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=shown).start()
                self.port = runner.addresses[0][1]
                self.endpoint = str(self._target.with_port(self.port))
                yield self
            finally:
                await runner.cleanup()

    def breaks(self, operation: str, fault: Fault, times: int | None = None) -> None:
        """From now on the operation ends in the fault, as often as `times` says or until mended.

        Operations are insert, look up, remove, create (a table or queue), send, receive, peek, update, delete,
        each with the name of the table or queue behind it: "send work-poison". A beginning is enough.
        """
        self._rules.append(_Rule(operation, fault, times))

    def mend(self) -> None:
        self._rules.clear()

    async def forward(self, request: web.BaseRequest) -> Answer:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        url = URL(str(self._target.origin()) + request.raw_path, encoded=True)
        async with self._session.request(
            request.method, url, headers=headers, data=await request.read(), skip_auto_headers=("Content-Type",)
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
            return Answer(answer.status, kept, await answer.read())

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        operation = _operation(request)
        self.seen[operation] += 1
        exchange = Exchange(self, request)
        for rule in self._rules:
            if rule.applies(operation):
                return await rule.use()(exchange)
        try:
            return (await exchange.forward()).response()
        except aiohttp.ClientError:
            return exchange.cut()  # the service is not there


def _operation(request: web.BaseRequest) -> str:
    """What is asked for, and of which queue or table."""
    _, _, *parts = request.path.split("/")
    name = parts[0].partition("(")[0] if parts else ""
    if parts[1:2] == ["messages"]:
        verbs = {"POST": "send", "GET": "receive", "PUT": "update", "DELETE": "delete"}
        verb = "peek" if "peekonly" in request.query else verbs[request.method]
        return f"{verb} {name}"
    if request.method == "PUT" or name == "Tables":
        return f"create {name}"
    return {"POST": "insert", "GET": "look up", "DELETE": "remove"}.get(request.method, request.method) + f" {name}"
