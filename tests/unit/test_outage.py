"""Riding out an outage."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from edw import outage
from edw.errors import LeaseLost, Unavailable
from edw.outage import Outage
from edw.stop import Stop


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(outage, "LONGEST_WAIT", 0.001)


class Service:
    """Fails as often as it is told, then answers."""

    def __init__(self, failures: int) -> None:
        self.answers: Iterator[bool] = iter([False] * failures + [True])

    async def call(self) -> str:
        if not next(self.answers):
            raise Unavailable("receive: 503 ServerBusy")
        return "answer"


async def test_a_call_is_repeated_until_the_service_answers() -> None:
    assert await Outage("queue", Stop()).ride_out(Service(failures=20).call) == "answer"


async def test_one_failure_is_not_reported() -> None:
    with capture_logs() as logs:
        await Outage("queue", Stop()).ride_out(Service(failures=1).call)
    assert logs == []


async def test_an_outage_is_logged_once_and_its_end_too_however_many_wait() -> None:
    queue = Outage("queue", Stop())
    with capture_logs() as logs:
        await asyncio.gather(*(queue.ride_out(Service(failures=5).call) for _ in range(10)))
    assert [entry["event"] for entry in logs] == ["service unavailable, trying again", "service available again"]
    assert not queue.is_on


async def test_a_stop_ends_the_wait_at_once() -> None:
    stop = Stop()
    stop.set()
    with pytest.raises(Unavailable):
        await Outage("queue", stop).ride_out(Service(failures=9).call)


async def test_nothing_is_tried_past_the_limit() -> None:
    with pytest.raises(Unavailable):
        await Outage("queue", Stop()).ride_out(Service(failures=9).call, until=time.monotonic())


async def test_an_answer_that_is_not_an_outage_is_passed_on_at_once() -> None:
    async def refuse() -> None:
        raise LeaseLost("delete: 404 MessageNotFound")

    with pytest.raises(LeaseLost):
        await Outage("queue", Stop()).ride_out(refuse)
