"""A storage service's access control: a proxy that lets requests through, or answers as Azure does without a role."""

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from yarl import URL

from azurite import Certificate
from entra import STORAGE, TENANT, Refusal
from local_https import served

# learn.microsoft.com/rest/api/storageservices/common-rest-api-error-codes
NO_ROLE = Refusal(
    403,
    "AuthorizationPermissionMismatch",
    "This request is not authorized to perform this operation using this permission.",
)
BAD_TOKEN = Refusal(
    401,
    "InvalidAuthenticationInfo",
    "Server failed to authenticate the request. Please refer to the information in the www-authenticate header.",
)


class Gate:
    """Before the service at `target`; closed while `refusal` is set."""

    def __init__(self, target: str, shown: Certificate) -> None:
        self._target = URL(target)
        self._shown = shown
        self.refusal: Refusal | None = None

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """The URL to use instead of the target's."""
        trusted = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=self._shown.chain))
        async with aiohttp.ClientSession(connector=trusted) as self._service, served(self._answer, self._shown) as port:
            yield str(self._target.with_port(port))

    async def _answer(self, request: web.Request) -> web.Response:
        if self.refusal:
            return _refused(self.refusal, is_table="json" in request.headers.get("Accept", ""))
        headers = {name: value for name, value in request.headers.items() if name not in ("Host", "Content-Length")}
        url = URL(f"{self._target.origin()}{request.raw_path}", encoded=True)
        async with self._service.request(request.method, url, headers=headers, data=await request.read()) as answer:
            kept = ("Content-Type", "x-ms-error-code", "x-ms-popreceipt", "x-ms-time-next-visible")
            passed = {name: answer.headers[name] for name in kept if name in answer.headers}
            return web.Response(status=answer.status, body=await answer.read(), headers=passed)


def _refused(refusal: Refusal, is_table: bool) -> web.Response:
    headers = {
        "x-ms-error-code": refusal.code,
        "Content-Type": "application/json" if is_table else "application/xml",
    }
    if refusal.status == 401:
        authority = f"https://login.microsoftonline.com/{TENANT}/oauth2/authorize"
        headers["WWW-Authenticate"] = f"Bearer authorization_uri={authority} resource_id={STORAGE}"
    words = f"{refusal.words}\nRequestId:1\nTime:2026-11-23T12:00:00.0000000Z"
    xml = f'<?xml version="1.0"?><Error><Code>{refusal.code}</Code><Message>{words}</Message></Error>'
    odata = json.dumps({"odata.error": {"code": refusal.code, "message": {"lang": "en-US", "value": words}}})
    return web.Response(status=refusal.status, text=odata if is_table else xml, headers=headers)
