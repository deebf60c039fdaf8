"""What the services answer, as one line and one decision."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import pytest
from azure.core.exceptions import AzureError, HttpResponseError, ServiceRequestError

from edw.errors import (
    ContentRefused,
    LeaseLost,
    Missing,
    NoToken,
    Rejected,
    Throttled,
    Unavailable,
    translated,
    unavailable,
)


def answered(status: int, code: str, text: str = "Words.\nRequestId:1\nTime:2") -> HttpResponseError:
    error = HttpResponseError(message=text)
    error.status_code = status
    error.error_code = SimpleNamespace(value=code)  # type: ignore[attr-defined]  # the SDKs set an enum
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ServiceRequestError("Cannot connect to host"), Unavailable),
        (NoToken("no token\nAttempted credentials:\n..."), Unavailable),
        (answered(500, "InternalError"), Unavailable),
        (answered(500, "OperationTimedOut"), Throttled),
        (answered(503, "ServerBusy"), Throttled),
        (answered(429, "TooManyRequests"), Throttled),
        (answered(403, "AuthorizationPermissionMismatch"), Unavailable),
        (answered(401, "NoAuthenticationInformation"), Unavailable),
        (answered(404, "QueueNotFound"), Missing),
        (answered(409, "TableBeingDeleted"), Unavailable),
        (answered(400, "PopReceiptMismatch"), LeaseLost),
        (answered(404, "MessageNotFound"), LeaseLost),
        (answered(400, "PropertyValueTooLarge"), ContentRefused),
        (answered(413, "RequestBodyTooLarge"), ContentRefused),
        (answered(400, "InvalidInput"), Rejected),
        (answered(400, "OutOfRangeInput"), Rejected),
        (answered(400, "InvalidHeaderValue"), Rejected),
    ],
    ids=lambda value: (
        getattr(value, "message", value.__class__.__name__)[:12] if isinstance(value, AzureError) else None
    ),
)
def test_an_error_is_blamed_on_the_service_the_content_or_the_lease(error: AzureError, kind: type) -> None:
    seen = translated(error, "doing it")
    assert type(seen) is kind
    assert str(seen).startswith("doing it: ")
    assert "\n" not in str(seen)


@pytest.mark.parametrize("code", ["AuthorizationPermissionMismatch", "AuthorizationFailure"])
def test_a_refused_identity_is_told_which_roles_to_assign(code: str) -> None:
    text = str(translated(answered(403, code), "receive"))
    assert "Storage Queue Data Contributor" in text
    assert "Storage Table Data Contributor" in text


def test_a_missing_credential_is_one_line_with_the_reason_and_the_remedy() -> None:
    several = (
        "DefaultAzureCredential failed.\nAttempted credentials:\n\tAzureCliCredential: not found on path\nContent: {}"
    )
    text = str(translated(NoToken(several), "receive"))
    assert "\n" not in text
    assert "AzureCliCredential: not found on path" in text
    assert "az login" in text
    assert "Content" not in text


def test_a_failed_request_that_concerns_no_message_is_never_blamed_on_one() -> None:
    assert type(unavailable(answered(400, "InvalidHeaderValue"), "receive")) is Unavailable


def test_neither_a_signature_nor_a_pop_receipt_is_in_the_words_of_a_failed_connection() -> None:
    url = "https://acct.queue.core.windows.net/orders/messages/8f1c?sv=1&sig=a-signature%3D&popreceipt=a-receipt"
    for said in (f"Connection timeout to host {url}", url):
        text = str(translated(ServiceRequestError(said), "delete from work"))
        assert "https://acct.queue.core.windows.net/orders/messages/8f1c" in text
        assert "signature" not in text
        assert "receipt" not in text


def test_failures_of_one_cause_are_of_one_kind_whatever_their_words() -> None:
    refused = [NoToken(f"AADSTS70021 Trace ID: {number}") for number in range(2)]
    kinds = {unavailable(error, doing).kind for error, doing in zip(refused, ("receive", "create queue"), strict=True)}
    assert kinds == {"NoToken"}
    assert unavailable(answered(503, "ServerBusy"), "receive").kind == "ServerBusy"


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("7", 7, 7), ("0.5", 0.5, 0.5), ("in a minute", 0, 0), (None, 0, 0), ("-3", 0, 0), ("date", 50, 60)],
)
def test_the_wait_that_a_throttling_service_asks_for_is_known(header: str | None, least: float, most: float) -> None:
    if header == "date":
        header = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    error = answered(503, "ServerBusy")
    error.response = SimpleNamespace(headers={"Retry-After": header} if header else {})  # type: ignore[assignment]
    seen = translated(error, "insert")
    assert isinstance(seen, Throttled)
    assert least <= seen.retry_after <= most
