"""One credential and one client per service, however often they are asked for."""

from collections import Counter
from typing import Any

import azure.data.tables.aio
import azure.storage.queue.aio
import pytest

from edw import identity, storage
from edw.settings import ConsumerSettings
from edw.storage import API_VERSION, Storage


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what is constructed."""
    counts: Counter[str] = Counter()

    def count(module: Any, name: str) -> None:
        class Counted(getattr(module, name)):  # type: ignore[misc]
            def __init__(self, *args: Any, **options: Any) -> None:
                counts[name] += 1
                super().__init__(*args, **options)

        monkeypatch.setattr(module, name, Counted)

    count(identity, "Identity")
    count(azure.data.tables.aio, "TableServiceClient")
    count(storage, "QueueServiceClient")
    return counts


async def test_queue_poison_queue_and_table_share_one_credential_and_one_client_per_service(
    made: Counter[str],
) -> None:
    settings = ConsumerSettings(storage_account_name="acct", queue_name="work", table_name="results")
    async with Storage(settings) as opened:
        await opened.queue("work")
        await opened.queue("work-poison")
        await opened.table(settings)
    assert made == {"Identity": 1, "QueueServiceClient": 1, "TableServiceClient": 1}


async def test_a_connection_string_needs_no_credential(made: Counter[str]) -> None:
    settings = ConsumerSettings(
        storage_connection_string="UseDevelopmentStorage=true", queue_name="work", table_name="results"
    )
    async with Storage(settings) as opened:
        queue, table = await opened.queue("work"), await opened.table(settings)
        assert queue.api_version == table.api_version == API_VERSION
    assert made["Identity"] == 0
