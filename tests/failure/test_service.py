"""Services that stop and come back, and services that are asked too much."""

import asyncio
import itertools
from pathlib import Path

import pytest
from aiohttp import web
from yarl import URL

import azurite
from faults import LEASE, Faults
from proxy import Exchange, refuse
from workflow import Workflow, eventually

MESSAGES = [f"message {number}" for number in range(100)]
MAX_DEQUEUE_COUNT = 2
LONGER_THAN_ALL_LEASES = LEASE * MAX_DEQUEUE_COUNT + 1.0


@pytest.mark.timeout(120)
async def test_an_outage_longer_than_all_leases_of_a_message_loses_doubles_and_poisons_nothing(tmp_path: Path) -> None:
    """Azurite is stopped and started again with its data, and the consumers run throughout."""
    data = tmp_path / "data"
    with azurite.running(data=data) as service:
        ports = [URL(endpoint).port or 0 for endpoint in (service.queue_endpoint, service.table_endpoint)]
        async with Workflow(service.connection_string, tmp_path).opened() as flow:
            await flow.create()
            settings = {
                "EDW_VISIBILITY_TIMEOUT": str(LEASE),
                "EDW_MAX_DEQUEUE_COUNT": str(MAX_DEQUEUE_COUNT),
                "EDW_CONCURRENCY": "4",
            }
            consumers = [await flow.start("consumer", **settings) for _ in range(2)]
            await flow.send(*MESSAGES)
            await eventually(flow.rows)
            azurite.end(service.process)
            await asyncio.sleep(LONGER_THAN_ALL_LEASES)
            with azurite.running(*ports, data=data):
                await flow.emptied(within=60)
                for consumer in consumers:
                    assert await consumer.stopped() == 0
                await flow.holds_exactly(*MESSAGES)
                assert await flow.poison_left() == 0
                for consumer in consumers:
                    told = [line["event"] for line in consumer.log() if line["level"] == "warning"]
                    assert set(told) == {"service unavailable, trying again"}


async def test_a_table_that_is_down_for_longer_than_all_leases_costs_a_message_no_delivery(
    flow: Workflow, faults: Faults
) -> None:
    faults.breaks("insert", refuse(500, "InternalError"))
    faults.breaks("look up", refuse(500, "InternalError"))
    consumer = await flow.start("consumer", EDW_MAX_DEQUEUE_COUNT=str(MAX_DEQUEUE_COUNT), EDW_LOG_LEVEL="debug")
    await flow.send("held")
    await eventually(lambda: faults.seen("insert") > 1)
    await flow.send("not received")
    await asyncio.sleep(LONGER_THAN_ALL_LEASES)
    faults.mend()
    await flow.emptied()
    assert [line["dequeue_count"] for line in consumer.events("message done")] == [1, 1]
    await flow.holds_exactly("held", "not received")
    assert await consumer.stopped() == 0
    (last,) = consumer.events("consumer stopped")
    assert last["renewed"] >= 2
    assert last["received"] == 2


@pytest.mark.parametrize("operation", ["insert", "delete", "receive"])
async def test_a_service_that_is_asked_too_much_is_given_time(flow: Workflow, faults: Faults, operation: str) -> None:
    answers = itertools.cycle([refuse(503, "ServerBusy"), refuse(500, "OperationTimedOut"), refuse(429, "Throttled")])

    async def busy(exchange: Exchange) -> web.Response:
        return await next(answers)(exchange)

    faults.breaks(operation, busy)
    await flow.send(*MESSAGES)
    consumer = await flow.start("consumer")
    await eventually(lambda: faults.seen(operation) > 3)
    faults.mend()
    await flow.emptied()
    assert await consumer.stopped() == 0
    await flow.holds_exactly(*MESSAGES)
    assert await flow.poison_left() == 0
    assert not [line for line in consumer.log() if line["level"] == "error"]
    (last,) = consumer.events("consumer stopped")
    assert (last["lease_lost"], last["released"]) == (0, 0)
    assert last["received"] == len(MESSAGES)


async def test_the_time_that_a_service_asks_for_is_given(flow: Workflow, faults: Faults) -> None:
    consumer = await flow.start("consumer")
    await consumer.says("consumer started")
    await eventually(lambda: faults.seen("receive"))
    faults.breaks("insert", refuse(429, "TooManyRequests", Retry_After="3"), times=1)
    began = asyncio.get_running_loop().time()
    await flow.send("hello")
    await flow.emptied()
    assert asyncio.get_running_loop().time() - began >= 3
    assert faults.seen("insert") == 2
