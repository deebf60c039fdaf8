"""What the real SDK clients make of the services' answers; the service is a few lines on loopback."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from edw.errors import ContentRefused, LeaseLost, Missing, Rejected, Throttled, Unavailable
from edw.lease import Lease
from edw.queue import Delivery, Queue
from edw.settings import ConsumerSettings
from edw.storage import Storage
from edw.table import Table

ROW = {"PartitionKey": "8f1c", "RowKey": "0.100000", "data": "hello"}
RECEIPT = "a-pop-receipt"
SIGNATURE = "a-signature"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def answering(status: int, code: str, text: str = "Words of the service.") -> Handler:
    """A service that says no in the table service's words, or in the queue service's."""

    async def answer(request: web.Request) -> web.Response:
        if "results" in request.path:
            said = {"odata.error": {"code": code, "message": {"lang": "en-US", "value": f"{text}\nRequestId:1"}}}
            return web.Response(status=status, text=json.dumps(said), content_type="application/json")
        xml = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{text}\nRequestId:1</Message></Error>'
        return web.Response(status=status, text=xml, content_type="application/xml", headers={"x-ms-error-code": code})

    return answer


@asynccontextmanager
async def service(handler: Handler, seconds: float = 10) -> AsyncIterator[tuple[Queue, Table]]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app) as server:
        url = str(server.make_url("/acct"))
        settings = ConsumerSettings(
            storage_connection_string=f"QueueEndpoint={url};TableEndpoint={url};SharedAccessSignature=sig={SIGNATURE}",
            queue_name="work",
            table_name="results",
        )
        async with Storage(settings) as storage:
            yield Queue(await storage.queue("work"), seconds), Table(await storage.table(settings), seconds)


def delivery() -> Delivery:
    return Delivery("8f1c", "content", 1, datetime.now(UTC), datetime.now(UTC), Lease(RECEIPT, time.monotonic() + 60))


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "PropertyValueTooLarge", ContentRefused),
        (413, "RequestBodyTooLarge", ContentRefused),
        (400, "InvalidInput", Rejected),
        (404, "TableNotFound", Missing),
        (409, "TableBeingDeleted", Unavailable),
        (403, "AuthorizationPermissionMismatch", Unavailable),
        (500, "InternalError", Unavailable),
        (500, "OperationTimedOut", Throttled),
        (503, "ServerBusy", Throttled),
        (429, "TooManyRequests", Throttled),
    ],
)
async def test_an_insert_that_the_table_refuses_is_blamed_on_what_its_code_says(
    status: int, code: str, kind: type[Exception]
) -> None:
    async with service(answering(status, code)) as (_, table):
        with pytest.raises(kind) as refused:
            await table.insert(ROW)
    assert type(refused.value) is kind
    assert str(refused.value).startswith(f"insert into results: {status} {code}: Words of the service.")
    assert "\n" not in str(refused.value)


async def test_only_an_entity_that_exists_counts_as_stored() -> None:
    async with service(answering(409, "EntityAlreadyExists")) as (_, table):
        assert await table.insert(ROW) is False


async def test_a_lookup_in_a_table_that_is_missing_is_not_an_empty_answer() -> None:
    async with service(answering(404, "TableNotFound")) as (_, table):
        with pytest.raises(Unavailable, match="create the table"):
            await table.keep_one("8f1c")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(404, "MessageNotFound", LeaseLost), (400, "PopReceiptMismatch", LeaseLost), (503, "ServerBusy", Unavailable)],
)
async def test_a_delete_that_the_queue_refuses_is_blamed_on_what_its_code_says(
    status: int, code: str, kind: type[Exception]
) -> None:
    async with service(answering(status, code)) as (queue, _):
        with pytest.raises(kind):
            await queue.delete(delivery())


async def test_a_queue_that_is_being_deleted_does_not_count_as_created() -> None:
    async with service(answering(409, "QueueBeingDeleted")) as (queue, _):
        with pytest.raises(Unavailable, match="QueueBeingDeleted"):
            await queue.create()


@pytest.mark.parametrize(("status", "code"), [(409, "TableAlreadyExists"), (403, "AuthorizationPermissionMismatch")])
async def test_a_table_that_exists_or_may_not_be_created_is_left_as_it_is(status: int, code: str) -> None:
    async with service(answering(status, code)) as (_, table):
        assert await table.create() is False


async def test_a_request_is_sent_once_and_repeated_by_nobody_else() -> None:
    requests = 0

    async def busy(request: web.Request) -> web.StreamResponse:
        nonlocal requests
        requests += 1
        return await answering(503, "ServerBusy")(request)

    async with service(busy) as (queue, table):
        with pytest.raises(Unavailable):
            await queue.delete(delivery())
        with pytest.raises(Unavailable):
            await table.insert(ROW)
    assert requests == 2


async def test_an_answer_that_comes_too_late_or_trickles_ends_in_time() -> None:
    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/xml"})
        await response.prepare(request)
        for _ in range(600):
            await response.write(b" ")
            await asyncio.sleep(0.05)
        return response

    async with service(trickle, seconds=0.3) as (queue, table):
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: queue.receive(1, 30),
            queue.probe,
            lambda: queue.renew(delivery(), 30),
            lambda: queue.delete(delivery()),
            lambda: table.insert(ROW),
            lambda: table.keep_one("8f1c"),
        ]
        for call in calls:
            async with asyncio.timeout(10):
                with pytest.raises(Unavailable, match=r"no answer within 0\.3 s"):
                    await call()


async def test_a_lease_counts_from_before_the_request() -> None:
    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(0.5)
        noon = "Mon, 23 Nov 2026 12:00:00 GMT"
        times = f"<InsertionTime>{noon}</InsertionTime><ExpirationTime>{noon}</ExpirationTime>"
        message = f"<MessageId>8f1c</MessageId>{times}<PopReceipt>{RECEIPT}</PopReceipt>"
        counted = f"<TimeNextVisible>{noon}</TimeNextVisible><DequeueCount>2</DequeueCount>"
        page = f"<QueueMessage>{message}{counted}<MessageText>hello</MessageText></QueueMessage>"
        xml = f'<?xml version="1.0"?><QueueMessagesList>{page}</QueueMessagesList>'
        return web.Response(text=xml, content_type="application/xml")

    async with service(slow) as (queue, _):
        (received,) = await queue.receive(1, 30)
    assert (received.content, received.dequeue_count) == ("hello", 2)
    assert received.lease.remaining() <= 29.5


@pytest.mark.parametrize(
    ("text", "content_type"), [("<html>Sign in&nbsp;here", "text/html"), ("{}", "application/json"), ("", "text/plain")]
)
async def test_a_page_that_is_not_the_services_is_no_answer(text: str, content_type: str) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text=text, content_type=content_type)

    async with service(page) as (queue, table):
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: queue.renew(delivery(), 30),
            lambda: queue.delete(delivery()),
            lambda: queue.send("content"),
            lambda: table.insert(ROW),
            lambda: table.keep_one("8f1c"),
        ]
        for call in calls:
            with pytest.raises(Unavailable) as failed:
                await call()
            assert "\n" not in str(failed.value)


async def test_a_delete_that_was_done_without_an_answer_counts_as_done() -> None:
    answers = iter([answering(503, "ServerBusy"), answering(404, "MessageNotFound")])

    async def answer(request: web.Request) -> web.StreamResponse:
        return await next(answers)(request)

    deleted = delivery()
    async with service(answer) as (queue, _):
        with pytest.raises(Unavailable):
            await queue.delete(deleted)
        await queue.delete(deleted)


async def test_a_probe_and_a_look_up_are_never_blamed_on_a_message() -> None:
    async with service(answering(400, "InvalidInput")) as (queue, table):
        for call in (queue.probe, table.probe, lambda: table.keep_one("8f1c")):
            with pytest.raises(Unavailable):
                await call()
