"""The consumer program against Azurite."""

import asyncio
import json
import signal
import socket
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from azure.storage.queue import AccountSasPermissions, ResourceTypes, Services, generate_account_sas

import azurite
from azurite import ACCOUNT, KEY, Service
from edw import message
from edw.message import STAMP
from workflow import Workflow, eventually, tapped

NOW = "2026-11-23 12:00:00.123456"


def body(msg: str, src_stamp: str | None = None) -> str:
    return json.dumps({"msg": msg, "srcStamp": src_stamp or message.stamp(datetime.now(UTC))})


async def test_a_message_of_the_aws_producer_becomes_the_documented_entity(flow: Workflow) -> None:
    await flow.create()
    await flow.put('{"msg": "Scale Test Message : COUNT 1", "srcStamp": "2026-11-23 12:00:00.123456"}')
    (sent,) = await flow.queue.peek_messages()
    await flow.drained()
    (row,) = await flow.rows()
    assert row["PartitionKey"] == sent.id
    assert row["data"] == "Scale Test Message : COUNT 1"
    assert row["srcStamp"] == "2026-11-23 12:00:00.123456"
    processed = datetime.strptime(row["dateStamp"], STAMP).replace(tzinfo=UTC)
    taken = processed - datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)
    assert row["messageProcessingTime"] == pytest.approx(max(0.0, taken.total_seconds()))
    assert isinstance(row["messageProcessingTime"], float)
    assert row["RowKey"] == f"{row['messageProcessingTime']:.6f}"
    assert await flow.left() == 0


async def test_the_programs_create_what_is_missing_and_go_on_where_it_exists(flow: Workflow) -> None:
    for _ in range(2):
        assert (await flow.run("producer", "--count", "1")).process.returncode == 0
        await flow.drained()
    assert len(await flow.rows()) == 2
    assert await flow.poisoned() == []  # and the poison queue is there


@pytest.mark.parametrize(
    "src_stamp",
    ["2026-11-23 12:00:00", "2026-11-23T12:00:00.123Z", "2026-11-23T12:00:00Z", "2026-11-23T14:00:00.123456+02:00"],
)
async def test_source_stamps_of_other_senders_are_stored_as_received(flow: Workflow, src_stamp: str) -> None:
    await flow.create()
    await flow.put(body("hello", src_stamp))
    await flow.drained()
    assert [row["srcStamp"] for row in await flow.rows()] == [src_stamp]


async def test_unknown_members_are_ignored(flow: Workflow) -> None:
    await flow.create()
    await flow.put(json.dumps({"msg": "hello", "srcStamp": NOW, "color": "blue", "nested": [{"a": 1}]}))
    await flow.drained()
    assert await flow.stored() == ["hello"]


@pytest.mark.parametrize(
    "msg",
    [
        "",
        "😀𐍈",
        "\x00\x01\x1f\x7f\x85",
        "\"'`<&>]]>&amp;",
        "\r\n\t  leading and trailing ",
        "/\\#?%27",
        "\ufffe￿\ufeff",
    ],
    ids=["empty", "beyond the BMP", "control", "quotes and XML", "white space", "key characters", "non-characters"],
)
async def test_any_text_is_read_back_equal(flow: Workflow, msg: str) -> None:
    await flow.create()
    await flow.put(body(msg))
    await flow.drained()
    assert await flow.stored() == [msg]


async def test_characters_that_a_sender_did_not_escape_are_read_back_equal(flow: Workflow) -> None:
    await flow.create()
    await flow.put(json.dumps({"msg": "😀 é <&>", "srcStamp": NOW}, ensure_ascii=False))
    await flow.drained()
    assert await flow.stored() == ["😀 é <&>"]


async def test_a_message_of_64_kib_whose_msg_exceeds_one_property_is_read_back_equal(flow: Workflow) -> None:
    await flow.create()
    msg = "".join(chr(ord("a") + place % 26) for place in range(65_536 - len(body(""))))
    await flow.put(body(msg))
    await flow.drained()
    assert await flow.stored() == [msg]


async def test_base64_of_other_peers_is_decoded(flow: Workflow) -> None:
    await flow.create()
    await flow.put(message.encode(body("über"), "base64"))
    await flow.drained(EDW_MESSAGE_ENCODING="base64")
    assert await flow.stored() == ["über"]


async def test_a_clock_behind_the_producers_stores_no_negative_time(flow: Workflow) -> None:
    await flow.create()
    ahead = message.stamp(datetime.now(UTC) + timedelta(hours=1))
    await flow.put(body("1", ahead), body("2", ahead))
    consumer = await flow.drained()
    assert [(row["RowKey"], row["messageProcessingTime"]) for row in await flow.rows()] == [("0.000000", 0.0)] * 2
    assert consumer.events("consumer stopped")[0]["clock_behind"] == 2
    assert len(consumer.events("clock behind the producer's, processing times of 0 stored")) == 1


async def test_bad_messages_end_in_the_poison_queue_byte_for_byte_and_good_ones_in_the_table(flow: Workflow) -> None:
    await flow.create()
    bad = [
        "not json",
        "",
        "[]",
        '{"msg": "no stamp"}',
        body("x", "yesterday"),
        '{"msg":7,"srcStamp":"' + NOW + '"}',
        " é<&>\t",
    ]
    await flow.put(body("good 1"), *bad, body("good 2"))
    await flow.drained()
    assert await flow.stored() == ["good 1", "good 2"]
    envelopes = [json.loads(content) for content in await flow.poisoned()]
    assert sorted(envelope["body"] for envelope in envelopes) == sorted(bad)
    assert all(envelope["reason"] and envelope["messageId"] for envelope in envelopes)
    assert await flow.left() == 0


async def test_a_poison_message_does_not_expire(flow: Workflow) -> None:
    await flow.create()
    await flow.put("not json")
    await flow.drained()
    (kept,) = await flow.poison_queue.peek_messages()
    assert kept.expires_on.year == 9999


async def test_a_message_whose_consumer_died_after_the_insert_is_stored_once(flow: Workflow) -> None:
    await flow.create()
    await flow.put(body("hello"))
    delivered = await flow.queue.receive_message(visibility_timeout=1)
    assert delivered
    await flow.table.create_entity({"PartitionKey": delivered.id, "RowKey": "0.100000", "data": "hello"})
    await eventually(_visible(flow))
    consumer = await flow.drained()
    assert len(await flow.rows()) == 1
    assert await flow.left() == 0
    assert consumer.events("consumer stopped")[0]["already_stored"] == 1


async def test_what_a_handler_keeps_in_its_messages_partition_is_neither_taken_for_the_entity_nor_touched(
    flow: Workflow,
) -> None:
    await flow.create()
    await flow.put(body("hello"))
    received = await flow.queue.receive_message(visibility_timeout=1)
    assert received
    await flow.queue.update_message(received, visibility_timeout=0)
    for row_key in ("begun", "1-of-2"):
        await flow.table.create_entity({"PartitionKey": received.id, "RowKey": row_key})
    await flow.drained()
    row_keys = [row["RowKey"] for row in await flow.rows() if row["PartitionKey"] == received.id]
    assert {"begun", "1-of-2"} < set(row_keys)
    assert len(row_keys) == 3


async def test_an_entity_that_is_there_already_counts_as_stored(flow: Workflow) -> None:
    await flow.create()
    await flow.put(body("hello", message.stamp(datetime.now(UTC) + timedelta(hours=1))))  # which makes the row key 0
    (sent,) = await flow.queue.peek_messages()
    await flow.table.create_entity({"PartitionKey": sent.id, "RowKey": "0.000000", "data": "hello"})
    consumer = await flow.drained()
    assert consumer.events("consumer stopped")[0]["already_stored"] == 1
    assert len(await flow.rows()) == 1
    assert await flow.left() == 0


def _visible(flow: Workflow) -> object:
    async def peeked() -> bool:
        return bool(await flow.queue.peek_messages())

    return peeked


async def test_the_last_line_has_every_count_and_the_percentiles(flow: Workflow) -> None:
    await flow.create()
    await flow.put(*(body(str(number)) for number in range(5)), "bad")
    consumer = await flow.drained()
    last = json.loads(consumer.stderr.splitlines()[-1])
    assert last["event"] == "consumer stopped"
    assert (last["received"], last["stored"], last["already_stored"], last["poisoned"], last["released"]) == (
        6,
        5,
        0,
        1,
        0,
    )
    assert 0 <= last["p50"] <= last["p95"] <= last["p99"]
    assert last["seconds"] > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_an_idle_consumer_with_0(flow: Workflow, number: signal.Signals) -> None:
    consumer = await flow.start("consumer")
    await consumer.says("consumer started")
    assert await consumer.stopped(number) == 0
    assert consumer.events("consumer stopped")


async def test_a_stop_under_load_leaves_every_message_stored_or_visible(flow: Workflow) -> None:
    await flow.run("producer", "--count", "600", "--rate", "0")
    consumer = await flow.start("consumer", EDW_CONCURRENCY="2")
    await eventually(flow.stored)
    assert await consumer.stopped() == 0
    stored = await flow.stored()
    assert len(stored) < 600, "the consumer was done before it could be stopped"
    visible = [message async for message in flow.queue.receive_messages()]
    assert len(stored) + len(visible) == 600
    assert len(set(stored)) == len(stored)


async def test_a_second_signal_ends_the_process_at_once(flow: Workflow) -> None:
    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(never_answer, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        account = f"AccountName={ACCOUNT};AccountKey={KEY};"
        nobody = f"{account}QueueEndpoint=http://127.0.0.1:{port}/a;TableEndpoint=http://127.0.0.1:{port}/a"
        consumer = await flow.start("consumer", AZURE_STORAGE_CONNECTION_STRING=nobody)
        await consumer.says("consumer started")
        consumer.process.send_signal(signal.SIGTERM)
        await consumer.says("stopping")
        assert await consumer.stopped() == 1
        assert not consumer.events("consumer stopped")


async def test_a_service_that_is_not_there_is_one_line_and_the_consumer_goes_on_when_it_comes(tmp_path: Path) -> None:
    ports = _free_port(), _free_port()
    account = f"AccountName={ACCOUNT};AccountKey={KEY};"
    endpoints = "QueueEndpoint=http://127.0.0.1:{}/{};TableEndpoint=http://127.0.0.1:{}/{}"
    connection = account + endpoints.format(ports[0], ACCOUNT, ports[1], ACCOUNT)
    async with Workflow(connection, tmp_path).opened() as flow:
        consumer = await flow.start("consumer")
        producer = await flow.start("producer", "--count", "3", "--rate", "0")
        for program in (consumer, producer):
            assert (
                "Cannot connect to host 127.0.0.1" in (await program.says("service unavailable, trying again"))["error"]
            )
        with azurite.running(queue_port=ports[0], table_port=ports[1]):
            assert await producer.ended() == 0
            await eventually(_count_stored(flow, 3))
            assert await consumer.stopped() == 0
        for program in (consumer, producer):
            assert "Traceback" not in program.stderr
            services = [event["service"] for event in program.events("service unavailable, trying again")]
            assert len(services) == len(set(services)), "one line for each service"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _count_stored(flow: Workflow, count: int) -> object:
    async def stored() -> bool:
        return len(await flow.stored()) == count

    return stored


async def test_a_service_that_comes_back_empty_gets_its_queue_and_table_again(tmp_path: Path) -> None:
    ports = _free_port(), _free_port()
    with azurite.running(*ports) as first:
        connection = first.connection_string
        async with Workflow(connection, tmp_path).opened() as flow:
            consumer = await flow.start("consumer")
            producer = await flow.start("producer", "--rate", "20")
            await eventually(flow.stored)
            first.process.kill()
            for program in (consumer, producer):
                await program.says("service unavailable, trying again")
            with azurite.running(*ports):
                await eventually(flow.stored)
                assert await consumer.stopped() == 0


async def test_a_role_that_may_not_create_queue_and_table_is_no_obstacle(flow: Workflow, service: Service) -> None:
    await flow.create()
    await flow.put(body("hello"), "bad")
    sas = generate_account_sas(
        ACCOUNT,
        account_key=KEY,
        services=Services.from_string("qt"),
        resource_types=ResourceTypes(service=True, container=True, object=True),
        permission=AccountSasPermissions(read=True, add=True, update=True, process=True, delete=True, list=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )
    limited = (
        f"QueueEndpoint={service.queue_endpoint};TableEndpoint={service.table_endpoint};SharedAccessSignature={sas}"
    )
    await flow.drained(AZURE_STORAGE_CONNECTION_STRING=limited)
    assert await flow.stored() == ["hello"]
    assert len(await flow.poisoned()) == 1


async def test_secrets_and_pop_receipts_are_in_no_log(flow: Workflow, service: Service) -> None:
    async with tapped(service) as (connection, queue_tap, _):
        await flow.run("producer", "--count", "40", "--rate", "0", AZURE_STORAGE_CONNECTION_STRING=connection)
        await flow.put("bad")
        consumer = await flow.drained(AZURE_STORAGE_CONNECTION_STRING=connection, EDW_LOG_LEVEL="debug")
        assert len(consumer.events("message done")) == 41
        assert len(queue_tap.pop_receipts()) >= 41
        for secret in (KEY, "SharedKey", *queue_tap.pop_receipts()):
            assert secret not in consumer.stderr + consumer.stdout


async def test_a_refused_key_is_one_line_without_the_key(flow: Workflow, service: Service) -> None:
    wrong = "d3Jvbmcta2V5LXdyb25nLWtleQ=="
    consumer = await flow.start(
        "consumer", AZURE_STORAGE_CONNECTION_STRING=service.connection_string.replace(KEY, wrong)
    )
    refused = await consumer.says("service unavailable, trying again")
    assert "403" in refused["error"]
    assert "key" in refused["error"]
    assert await consumer.stopped() == 0
    assert wrong not in consumer.stderr
    assert "Traceback" not in consumer.stderr


async def test_connections_are_reused(flow: Workflow, service: Service) -> None:
    async with tapped(service) as (connection, queue_tap, table_tap):
        await flow.run("producer", "--count", "300", "--rate", "0", AZURE_STORAGE_CONNECTION_STRING=connection)
        assert queue_tap.connections <= 16, "the producer's concurrency"
        before = queue_tap.connections
        await flow.drained(AZURE_STORAGE_CONNECTION_STRING=connection, EDW_CONCURRENCY="8")
        assert queue_tap.connections - before <= 9
        assert table_tap.connections <= 9
    assert len(await flow.stored()) == 300


async def test_few_requests_per_message(flow: Workflow, service: Service) -> None:
    await flow.run("producer", "--count", "320", "--rate", "0")
    async with tapped(service) as (connection, queue_tap, table_tap):
        await flow.drained(AZURE_STORAGE_CONNECTION_STRING=connection)
        requests = sum(tap.requests.count(b" HTTP/1.1\r\n") for tap in (queue_tap, table_tap))
    assert requests <= 2.1 * 320


async def test_a_consumer_is_alive_without_the_service_and_ready_with_it(flow: Workflow) -> None:
    nowhere = f"http://127.0.0.1:{_free_port()}/{ACCOUNT}"
    account = f"AccountName={ACCOUNT};AccountKey={KEY};QueueEndpoint={nowhere};TableEndpoint={nowhere}"
    for environment, readiness in (({"AZURE_STORAGE_CONNECTION_STRING": account}, 503), ({}, 200)):
        port = _free_port()
        consumer = await flow.start("consumer", EDW_HTTP_PORT=str(port), **environment)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            await eventually(partial(_answers, http, "/livez", 200))
            await eventually(partial(_answers, http, "/readyz", readiness))
        assert await consumer.stopped() == 0


async def _answers(http: aiohttp.ClientSession, path: str, status: int) -> bool:
    try:
        async with http.get(path) as answer:
            return answer.status == status
    except aiohttp.ClientConnectionError:
        return False


async def test_a_port_in_use_is_one_line_that_names_the_setting(flow: Workflow) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        consumer = await flow.run("consumer", "--http-port", str(port))
    assert consumer.process.returncode == 2
    assert consumer.stderr == f"aqs-consumer.py: EDW_HTTP_PORT: port {port} is in use\n"


@pytest.mark.parametrize("program", ["consumer", "producer"])
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AZURE_QUEUE_NAME", ""),
        ("AZURE_STORAGE_CONNECTION_STRING", "nonsense"),
        ("AZURE_QUEUE_NAME", "My_Queue"),
        ("EDW_CONCURRENCY", "0"),
    ],
)
async def test_wrong_settings_end_with_2_and_one_line_that_names_the_variable(
    flow: Workflow, program: str, variable: str, value: str
) -> None:
    ended = await flow.run(program, **{variable: value})
    assert ended.process.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert variable in ended.stderr
    assert ended.stdout == ""


async def test_a_dotenv_file_is_read_and_real_variables_win(flow: Workflow) -> None:
    name = flow.environment.pop("AZURE_TABLE_NAME")
    (flow.folder / ".env").write_text(f"AZURE_TABLE_NAME={name}\nAZURE_QUEUE_NAME=another\nEDW_DRAIN=true\n")
    await flow.create()
    await flow.put(body("hello"))
    await flow.drained()
    assert await flow.stored() == ["hello"]


async def test_an_unknown_kind_of_credential_names_the_variable(flow: Workflow) -> None:
    consumer = await flow.run(
        "consumer",
        AZURE_STORAGE_CONNECTION_STRING="",
        AZURE_STORAGE_ACCOUNT_NAME="acct",
        **{"AZURE_TOKEN_CREDENTIALS": "Nonsense"},
    )
    assert consumer.process.returncode == 2
    assert consumer.stderr.startswith("aqs-consumer.py: AZURE_TOKEN_CREDENTIALS or AZURE_AUTHORITY_HOST:")
    assert consumer.stderr.count("\n") == 1


async def test_no_credential_is_one_line_that_says_what_to_do(flow: Workflow) -> None:
    account = {"AZURE_STORAGE_CONNECTION_STRING": "", "AZURE_STORAGE_ACCOUNT_NAME": "acct"}
    chosen = {"AZURE_TOKEN_CREDENTIALS": "EnvironmentCredential"}  # which looks no further than the environment
    consumer = await flow.start("consumer", **account, **chosen)
    error = (await consumer.says("service unavailable, trying again"))["error"]
    assert "EnvironmentCredential" in error
    assert "az login" in error
    assert await consumer.stopped() == 0
    assert "Traceback" not in consumer.stderr


async def test_the_text_log_is_one_line_an_event(flow: Workflow) -> None:
    consumer = await flow.drained(EDW_LOG_FORMAT="text")
    assert len(consumer.stderr.splitlines()) == 2
    assert "consumer stopped" in consumer.stderr
