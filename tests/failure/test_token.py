"""The programs with tokens instead of a key, against Azurite over HTTPS: refreshed, refused, not to be had."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import azurite
import local_https
import report
from azurite import Certificate, Service
from entra import STORAGE, TENANT, Entra, Refusal
from proxy import Fault, Proxy, refuse
from workflow import Program, Workflow, eventually

REFUSED = "service unavailable, trying again"


class TokenWorkflow(Workflow):
    """Its programs sign in with `entra`; the look from outside is with the account's key."""

    def __init__(self, service: Service, shown: Certificate, entra: Entra, folder: Path) -> None:
        super().__init__(service.connection_string, folder)
        self.client_options = {"connection_verify": str(shown.chain)}
        self._entra = entra
        self.environment |= {
            "AZURE_STORAGE_CONNECTION_STRING": "",
            "AZURE_STORAGE_QUEUE_ENDPOINT": service.queue_endpoint,
            "AZURE_STORAGE_TABLE_ENDPOINT": service.table_endpoint,
        }

    async def start(self, program: str, *argv: str, **options: Any) -> Program:
        return await super().start(program, *argv, **(self._entra.environment(program) | options))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return local_https.certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def service(shown: Certificate) -> Iterator[Service]:
    # One for each test: a minute after its start Azurite clears away what deleted messages left, answering nobody.
    with azurite.running(certificate=shown) as running:
        yield running


@pytest.fixture
async def entra(shown: Certificate, tmp_path: Path) -> Entra:
    return Entra(shown, tmp_path)


@pytest.fixture
async def flow(service: Service, shown: Certificate, entra: Entra, tmp_path: Path) -> AsyncIterator[TokenWorkflow]:
    async with TokenWorkflow(service, shown, entra, tmp_path).opened() as workflow:
        yield workflow


@pytest.mark.timeout(120)
async def test_every_message_is_stored_once_across_many_lifetimes_of_tokens(flow: TokenWorkflow, entra: Entra) -> None:
    async with entra.listening():
        programs = await flow.start("consumer"), await flow.start("producer", "--count", "2000", "--rate", "130")
        await done(flow, 2000, *programs)
    assert len(await flow.rows()) == 2000
    for name in ("consumer", "producer"):
        assert 6 <= entra.issued[name] <= 60, "one in the two seconds that a token lives, not one a request"
    check_logs(entra, *programs)


async def test_a_token_that_the_service_finds_expired_too_early_is_no_messages_fault(
    flow: TokenWorkflow, entra: Entra
) -> None:
    entra.overstated = 1
    async with entra.listening():
        programs = await flow.start("consumer"), await flow.start("producer", "--count", "200", "--rate", "40")
        assert "403 AuthenticationFailed" in (await programs[0].says(REFUSED))["error"]
        await done(flow, 200, *programs)
    check_logs(entra, *programs)


async def test_a_token_for_something_else_is_one_line_and_the_consumer_goes_on_with_a_right_one(
    flow: TokenWorkflow, entra: Entra
) -> None:
    await flow.create()
    await flow.put(*(body(number) for number in range(1, 21)))
    entra.audience = "https://vault.azure.net"
    async with entra.listening():
        consumer = await flow.start("consumer")
        error = (await consumer.says(REFUSED))["error"]
        assert "token is not accepted" in error
        assert "Storage Queue Data Contributor and Storage Table Data Contributor" in error
        entra.audience, entra.lifetime = STORAGE, 3600
        await done(flow, 20, consumer)
    assert [line["service"] for line in consumer.events(REFUSED)] == ["queue"]
    check_logs(entra, consumer)


# As Azure answers, which Azurite does not: learn.microsoft.com/rest/api/storageservices/common-rest-api-error-codes
AUTHORITY = f"https://login.microsoftonline.com/{TENANT}/oauth2/authorize"
NO_ROLE = refuse(403, "AuthorizationPermissionMismatch")
BAD_TOKEN = refuse(
    401, "InvalidAuthenticationInfo", WWW_Authenticate=f"Bearer authorization_uri={AUTHORITY} resource_id={STORAGE}"
)


@pytest.mark.parametrize(
    ("refusal", "said", "remedy"),
    [
        (
            NO_ROLE,
            "403 AuthorizationPermissionMismatch",
            "assign the roles Storage Queue Data Contributor and Storage Table Data Contributor",
        ),
        (BAD_TOKEN, "401 InvalidAuthenticationInfo", "check that AZURE_TENANT_ID is the account's tenant"),
    ],
    ids=["no role", "token not accepted"],
)
async def test_refused_access_is_one_line_with_the_remedy_and_the_consumer_goes_on_when_it_comes(
    flow: TokenWorkflow, service: Service, shown: Certificate, entra: Entra, refusal: Fault, said: str, remedy: str
) -> None:
    await flow.create()
    await flow.put(*(body(number) for number in range(1, 41)))
    entra.lifetime = 3600
    queue, table = Proxy(service.queue_endpoint, shown), Proxy(service.table_endpoint, shown)
    queue.breaks("", refusal)
    table.breaks("", refusal)
    async with entra.listening(), queue.listening(), table.listening():
        consumer = await flow.start(
            "consumer", AZURE_STORAGE_QUEUE_ENDPOINT=queue.endpoint, AZURE_STORAGE_TABLE_ENDPOINT=table.endpoint
        )
        await consumer.says(REFUSED)
        queue.mend()
        await eventually(lambda: len(consumer.events(REFUSED)) > 1)
        table.mend()
        await done(flow, 40, consumer)
    lines = consumer.events(REFUSED)
    assert [line["service"] for line in lines] == ["queue", "table"]
    assert all(said in line["error"] and remedy in line["error"] for line in lines)
    check_logs(entra, consumer)


@pytest.mark.parametrize(
    ("status", "had_one"),
    [(400, False), (400, True), (503, True)],
    ids=["400 at the start", "400 in the midst", "503 in the midst"],
)
async def test_a_refused_sign_in_is_one_line_with_the_reason_and_no_messages_fault(
    flow: TokenWorkflow, entra: Entra, status: int, had_one: bool
) -> None:
    reason = "AADSTS70021: No matching federated identity record found for presented assertion."
    refusal = Refusal(status, "invalid_client", reason)
    entra.refusal = None if had_one else refusal
    async with entra.listening():
        programs = await flow.start("consumer"), await flow.start("producer", "--count", "200", "--rate", "50")
        if had_one:
            await eventually(flow.stored)
            entra.refusal = refusal
        for program in programs:
            await program.says(REFUSED)
        entra.refusal, entra.lifetime = None, 3600
        await done(flow, 200, *programs)
    for program in programs:
        assert_one_line_each(program, "no token", "workload identity", reason)
    check_logs(entra, *programs)


@pytest.mark.parametrize("had_one", [False, True], ids=["at the start", "in the midst"])
async def test_a_token_endpoint_that_is_not_there_is_one_line_that_names_it_and_no_messages_fault(
    flow: TokenWorkflow, entra: Entra, had_one: bool
) -> None:
    async with entra.listening():
        if had_one:
            programs = await flow.start("consumer"), await flow.start("producer", "--count", "200", "--rate", "50")
            await eventually(flow.stored)
    if not had_one:
        programs = await flow.start("consumer"), await flow.start("producer", "--count", "200", "--rate", "50")
    for program in programs:
        await program.says(REFUSED)
    entra.lifetime = 3600
    async with entra.listening():
        await done(flow, 200, *programs)
    for program in programs:
        assert_one_line_each(program, "no token", f"Cannot connect to host 127.0.0.1:{entra.port}")
    check_logs(entra, *programs)


async def test_neither_a_token_nor_the_federated_token_is_in_the_log_at_its_most_talkative(
    flow: TokenWorkflow, entra: Entra
) -> None:
    await flow.create()
    await flow.put(*(body(number) for number in range(1, 21)))
    async with entra.listening():
        consumer = await flow.start("consumer", EDW_LOG_LEVEL="debug")
        await done(flow, 20, consumer)
    assert len(consumer.events("message done")) == 20
    assert entra.issued["consumer"] > 0
    check_logs(entra, consumer)


async def done(flow: TokenWorkflow, count: int, consumer: Program, producer: Program | None = None) -> None:
    """Waits until `count` messages are sent and none is left; then nothing is lost, poisoned or stored twice."""
    if producer:
        assert await producer.ended(within=60) == 0
    await flow.emptied()
    assert await consumer.stopped() == 0
    seen = await report.examine(flow.queue, flow.poison_queue, flow.table, count)
    assert (seen.lost, seen.poisoned, seen.left) == (0, 0, 0), seen
    # By their ids: a producer that had no answer may have sent the same text as two messages.
    ids = await report.stored_ids(flow.table)
    assert len(set(ids)) == len(ids)


def assert_one_line_each(program: Program, *words: str) -> None:
    """For each service one line that says so, with each of the words once."""
    said = [line for line in program.events(REFUSED) if words[0] in line["error"]]
    assert [[line["error"].count(word) for word in words] for line in said] == [[1] * len(words)] * len(said)
    services = [line["service"] for line in said]
    assert services
    assert len(services) == len(set(services))


def check_logs(entra: Entra, *programs: Program) -> None:
    """No token, no traceback, nothing blamed on a message."""
    for program in programs:
        assert not [secret for secret in entra.secrets if secret in program.stdout + program.stderr]
        assert "Traceback" not in program.stderr
        assert '"level": "error"' not in program.stderr


def body(number: int) -> str:
    return json.dumps({"msg": f"Scale Test Message : COUNT {number}", "srcStamp": "2026-11-23 12:00:00"})
