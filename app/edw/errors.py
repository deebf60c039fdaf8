"""What can go wrong between a program and the storage services, in one line each."""

import json
import re

from azure.core.exceptions import AzureError, HttpResponseError
from azure.core.pipeline.policies import RetryPolicy

_LEASE_LOST = {"PopReceiptMismatch", "MessageNotFound"}
_MISSING = {"QueueNotFound", "TableNotFound"}
_BEING_DELETED = {"QueueBeingDeleted", "TableBeingDeleted"}
# learn.microsoft.com/rest/api/storageservices/table-service-error-codes and common-rest-api-error-codes:
# only those that speak of the content alone. One that may also mean a wrong request would, at the first
# mistake in a setting, send every message to the poison queue.
_CONTENT = {
    "EntityTooLarge",
    "PropertyValueTooLarge",
    "RequestBodyTooLarge",
}
# A URL's query can hold a signature or a pop receipt.
_URL_QUERY = re.compile(r"(https?://[^\s?]+)\?\S*")
_ROLES = "the roles Storage Queue Data Contributor and Storage Table Data Contributor"
_REMEDIES = {
    "AuthorizationPermissionMismatch": f"assign {_ROLES} to the identity (minutes may pass until they count)",
    "AuthorizationFailure": f"let the account's network rules admit the program, and assign {_ROLES} to the identity",
    "InvalidAuthenticationInfo": "the token is not accepted: check that AZURE_TENANT_ID is the account's tenant, "
    "and the clock",
    "KeyBasedAuthenticationNotPermitted": "the account takes no keys: "
    "set AZURE_STORAGE_ACCOUNT_NAME instead of AZURE_STORAGE_CONNECTION_STRING",
    "AuthenticationFailed": f"the key, the signature or the token is not accepted; an identity needs {_ROLES}",
    "QueueNotFound": "create the queue, or let the identity create it",
    "TableNotFound": "create the table, or let the identity create it",
}


class ServiceError(Exception):
    """Base of what a service answers, or fails to answer; the text is one line for a person."""


class Unavailable(ServiceError):
    """Raised when the service did not do what was asked and no message is to blame: no answer, throttling,
    a fault of its own, access refused, the queue or table missing.

    `kind` is the service's code or the failure's name: the same for all failures of one cause, as the text,
    with operations and trace ids in it, is not. `retry_after` are the seconds the service asks to wait.
    `is_refusal` says that the service did nothing; without it, it may have done what it was asked.
    """

    def __init__(self, text: str, kind: str, retry_after: float = 0.0, is_refusal: bool = False) -> None:
        super().__init__(text)
        self.kind = kind
        self.retry_after = retry_after
        self.is_refusal = is_refusal


class NoToken(AzureError):
    """Raised where the SDKs expect a token and there is none: nothing was asked of the storage service."""


class Missing(Unavailable):
    """Raised when the queue or the table is not there."""


class Throttled(Unavailable):
    """Raised when the service is asked more than it can do at the moment.

    learn.microsoft.com/azure/storage/queues/scalability-targets: 503 Server Busy, 500 Operation Timeout.
    """


class ContentRefused(ServiceError):
    """Raised when the service refuses a message or an entity for its content."""


class Rejected(ServiceError):
    """Raised when the service refuses a request and does not say that the content is to blame."""


class LeaseLost(ServiceError):
    """Raised when the message's lease is over: its pop receipt is no longer valid."""


def unavailable(error: Exception, doing: str) -> Unavailable:
    """The failure of a request that concerns no message. `doing` says what was asked of the service."""
    code = code_of(error)
    status = _status(error)
    is_refusal = isinstance(error, NoToken) or status == 503 or (status in range(400, 500) and status != 408)
    kind: type[Unavailable] = Unavailable
    if code in _MISSING:
        kind = Missing
    elif code == "OperationTimedOut" or status in (429, 503):
        kind = Throttled
    return kind(f"{doing}: {_line(error)}", code or type(error).__name__, _retry_after(error), is_refusal)


def translated(error: Exception, doing: str) -> ServiceError:
    """The failure of a request that concerns a message, as the error above that says whose fault it is."""
    code, status = code_of(error), _status(error)
    text = f"{doing}: {_line(error)}"
    if code in _LEASE_LOST:
        return LeaseLost(text)
    if code in _CONTENT:
        return ContentRefused(text)
    # No status: no answer. One below 400: an answer that is not the service's.
    if (
        status is None
        or status < 400
        or status in (401, 403, 408, 429)
        or status >= 500
        or code in _MISSING | _BEING_DELETED
    ):
        return unavailable(error, doing)
    return Rejected(text)


def exists_or_forbidden(error: AzureError) -> bool:
    """Whether something was not created because it exists already, or because the role may not create it."""
    return code_of(error) in ("QueueAlreadyExists", "TableAlreadyExists") or _status(error) == 403


def code_of(error: Exception) -> str | None:
    """The service's own error code, None where it gave none."""
    return _answer(error)[0]


def _answer(error: Exception) -> tuple[str | None, str]:
    """The service's error code and message."""
    said = str(getattr(error, "message", None) or error)
    code = getattr(error, "error_code", None)
    response = getattr(error, "response", None)
    if code is not None or response is None:
        return getattr(code, "value", code), said
    # The table SDK leaves the answer to an insert as it is.
    try:
        body = json.loads(response.text())["odata.error"]
        return body["code"], body["message"]["value"]
    except (ValueError, KeyError, TypeError):
        return response.headers.get("x-ms-error-code"), said


def _retry_after(error: Exception) -> float:
    """Seconds from the answer's Retry-After, a number or a date; 0 where there is none that can be read."""
    response = getattr(error, "response", None)
    try:
        return RetryPolicy().parse_retry_after(response.headers["Retry-After"]) if response else 0.0
    except (KeyError, ValueError, TypeError):
        return 0.0


def _status(error: Exception) -> int | None:
    return error.status_code if isinstance(error, HttpResponseError) else None


def _line(error: Exception) -> str:
    code, said = _answer(error)
    status = _status(error)
    said = _URL_QUERY.sub(r"\1", said)
    if isinstance(error, NoToken):
        # The reason may be behind the first line, one for each credential that was tried; what the endpoint
        # answered is repeated there as it came.
        reasons = [line for line in said.splitlines() if not line.startswith("Content: ")]
        return (
            "no token: sign in with az login, or check the pod's workload identity, or set "
            f"AZURE_STORAGE_CONNECTION_STRING. {' '.join(' '.join(reasons).split())}"
        )
    words = said.strip().split("\n")[0].strip()
    if not isinstance(error, AzureError):
        words = f"{type(error).__name__}: {words}"
    remedy = _REMEDIES.get(code or "")
    return (f"{status} {code}: " if status else "") + words + (f" Remedy: {remedy}." if remedy else "")
