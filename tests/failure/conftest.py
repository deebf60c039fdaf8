"""Programs that reach the storage service through proxies that break what they are told to."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from azurite import Service
from faults import LEASE, Faults
from proxy import Proxy
from workflow import Workflow


@pytest.fixture
async def faults(service: Service, flow: Workflow) -> AsyncIterator[Faults]:
    """Programs that `flow` starts go through these; the test itself does not."""
    await flow.create()
    async with Proxy(service.queue_endpoint).listening() as queue, Proxy(service.table_endpoint).listening() as table:
        through = replace(service, queue_endpoint=queue.endpoint, table_endpoint=table.endpoint)
        flow.environment |= {
            "AZURE_STORAGE_CONNECTION_STRING": through.connection_string,
            "EDW_VISIBILITY_TIMEOUT": str(LEASE),
            "EDW_POLL_INTERVAL_MAX": "0.5",
        }
        yield Faults(queue, table)
