"""Microsoft Entra's part: a token endpoint that gives tokens for the storage services to a pod's federated token."""

import base64
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from aiohttp import web

from azurite import Certificate
from local_https import served

TENANT = "6f1c2a7e-0b54-4d0e-9d5b-3a1f4c8e7b20"
STORAGE = "https://storage.azure.com"


class Refusal(NamedTuple):
    """An answer with an error instead of what was asked for."""

    status: int
    code: str
    words: str


class Entra:
    """Issues a token to whoever asks for one with the content of the file `federated_token`."""

    def __init__(self, shown: Certificate, folder: Path) -> None:
        self._shown = shown
        self.port = 0
        self.federated_token = folder / "federated-token"
        self.federated_token.write_text(f"federated-{uuid4().hex}")
        self.audience = STORAGE
        self.lifetime = 2
        """Seconds a token is good for."""
        self.overstated = 0
        """Seconds more than that the program is told."""
        self.refusal: Refusal | None = None
        """The answer instead of a token."""
        self.issued: Counter[str] = Counter()
        """Tokens by client id."""
        self.secrets = {self.federated_token.read_text()}
        """What is in no log."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """On the same port each time."""
        async with served(self._answer, self._shown, self.port) as self.port:
            yield

    def environment(self, client_id: str) -> dict[str, str]:
        """What the workload identity webhook injects, and what makes the programs trust this endpoint."""
        return {
            "AZURE_TOKEN_CREDENTIALS": "WorkloadIdentityCredential",
            "AZURE_CLIENT_ID": client_id,
            "AZURE_TENANT_ID": TENANT,
            "AZURE_FEDERATED_TOKEN_FILE": str(self.federated_token),
            "AZURE_AUTHORITY_HOST": f"https://127.0.0.1:{self.port}",
            "SSL_CERT_FILE": str(self._shown.chain),
        }

    async def _answer(self, request: web.Request) -> web.Response:
        asked = dict(await request.post())
        client_id = asked.pop("client_id", "")
        if (request.method, request.path) != ("POST", f"/{TENANT}/oauth2/v2.0/token") or asked != {
            "grant_type": "client_credentials",
            "scope": f"{STORAGE}/.default",
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": self.federated_token.read_text(),
        }:
            return _refused(Refusal(400, "invalid_request", "AADSTS900144: not what a workload identity asks."))
        if self.refusal:
            return _refused(self.refusal)
        self.issued[str(client_id)] += 1
        token = self._token(str(client_id))
        self.secrets.update(token.split("."))
        return web.json_response(
            {"token_type": "Bearer", "expires_in": self.lifetime + self.overstated, "access_token": token}
        )

    def _token(self, client_id: str) -> str:
        now = int(time.time())
        claims = {
            "aud": self.audience,
            "iss": f"https://sts.windows.net/{TENANT}/",
            "iat": now,
            "nbf": now,
            "exp": now + self.lifetime,
            "appid": client_id,
            "uti": uuid4().hex,
        }
        return ".".join([_encoded({"alg": "RS256", "typ": "JWT"}), _encoded(claims), uuid4().hex])


def _encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def _refused(refusal: Refusal) -> web.Response:
    said = f"{refusal.words} Trace ID: {uuid4()} Correlation ID: {uuid4()} Timestamp: 2026-11-23 12:00:00Z"
    return web.json_response({"error": refusal.code, "error_description": said}, status=refusal.status)
