"""The real thing: Azurite, once for all tests, and a queue and a table for each."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import azurite
from azurite import Service
from workflow import Workflow


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    with azurite.running() as running:
        yield running


@pytest.fixture
async def flow_of_its_own(tmp_path: Path) -> AsyncIterator[Workflow]:
    """For thousands of messages, which Azurite cleans up long after the test."""
    with azurite.running() as own:
        async with Workflow(own.connection_string, tmp_path).opened() as workflow:
            yield workflow


@pytest.fixture
async def flow(service: Service, tmp_path: Path) -> AsyncIterator[Workflow]:
    async with Workflow(service.connection_string, tmp_path).opened() as workflow:
        yield workflow
