"""Riding out an outage."""

import asyncio
import time

import pytest
from structlog.testing import capture_logs

from edw import outage
from edw.errors import LeaseLost, Missing, Throttled, Unavailable
from edw.outage import Outage
from edw.stop import Stop


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(outage, "LONGEST_WAIT", 0.001)
    monkeypatch.setattr(outage, "QUIET", 0.2)


async def nothing() -> None:
    """Creates nothing."""


class Service:
    """Fails as often as it is told, then answers."""

    def __init__(self, failures: int, error: Unavailable | None = None) -> None:
        self.failures = failures
        self.error = error or Unavailable("receive: 500 InternalError", "InternalError")
        self.calls = 0

    async def call(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "answer"


async def test_a_call_is_repeated_until_the_service_answers() -> None:
    assert await Outage("queue", Stop(), nothing).ride_out(Service(failures=20).call) == "answer"


async def test_one_failure_is_not_reported() -> None:
    with capture_logs() as logs:
        await Outage("queue", Stop(), nothing).ride_out(Service(failures=1).call)
    assert logs == []


async def test_an_outage_is_logged_once_and_its_end_too_however_many_wait() -> None:
    queue = Outage("queue", Stop(), nothing)
    with capture_logs() as logs:
        await asyncio.gather(*(queue.ride_out(Service(failures=5).call) for _ in range(10)))
        assert queue.is_on
        await queue.over(Service(failures=0).call)
    assert [entry["event"] for entry in logs] == ["service unavailable, trying again", "service available again"]
    assert not queue.is_on


async def test_a_service_that_answers_every_other_request_is_one_outage() -> None:
    queue = Outage("queue", Stop(), nothing)
    with capture_logs() as logs:
        for _ in range(20):
            await queue.ride_out(Service(failures=0).call)
            await queue.ride_out(Service(failures=2).call)
    assert len(logs) == 1


async def test_what_is_missing_and_not_to_be_created_is_an_answer() -> None:
    async def look() -> None:
        raise Missing("receive: 404 QueueNotFound", "QueueNotFound")

    with pytest.raises(Missing):
        await Outage("queue", Stop()).ride_out(look)


async def test_any_answer_ends_an_outage() -> None:
    async def refuse() -> None:
        raise LeaseLost("delete: 404 MessageNotFound")

    queue = Outage("queue", Stop(), nothing)
    await queue.ride_out(Service(failures=2).call)
    await asyncio.sleep(outage.QUIET)
    with pytest.raises(LeaseLost):
        await queue.ride_out(refuse)
    assert not queue.is_on


async def test_a_stop_in_the_midst_of_a_wait_leads_to_no_further_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_WAIT", 60)
    monkeypatch.setattr(outage, "LONGEST_WAIT", 60)
    stop, service = Stop(), Service(failures=1)
    asyncio.get_running_loop().call_later(0.05, stop.set)
    with pytest.raises(Unavailable):
        await Outage("queue", stop, nothing).ride_out(service.call)
    assert service.calls == 1


async def test_a_stop_ends_the_wait_at_once() -> None:
    stop = Stop()
    stop.set()
    with pytest.raises(Unavailable):
        await Outage("queue", stop, nothing).ride_out(Service(failures=9).call)


async def test_nothing_is_tried_past_the_limit() -> None:
    now, service = time.monotonic(), Service(failures=9)
    with pytest.raises(Unavailable):
        await Outage("queue", Stop(), nothing).ride_out(service.call, until=lambda: now)
    assert service.calls == 1


async def test_an_answer_that_is_not_an_outage_is_passed_on_at_once() -> None:
    async def refuse() -> None:
        raise LeaseLost("delete: 404 MessageNotFound")

    with pytest.raises(LeaseLost):
        await Outage("queue", Stop(), nothing).ride_out(refuse)


async def test_what_is_missing_is_created_and_the_call_repeated() -> None:
    exists = False

    async def create() -> None:
        nonlocal exists
        exists = True

    async def receive() -> str:
        if not exists:
            raise Missing("receive: 404 QueueNotFound", "QueueNotFound")
        return "answer"

    assert await Outage("queue", Stop(), create).ride_out(receive) == "answer"


async def test_each_kind_of_failure_is_logged_once_whatever_was_asked_and_however_they_alternate() -> None:
    queue = Outage("queue", Stop(), nothing)
    kinds = ["ServerBusy", "Timeout"] * 10

    async def call() -> str:
        if kinds:
            raise Unavailable(f"request {len(kinds)}", kinds.pop())
        return "answer"

    with capture_logs() as logs:
        await queue.ride_out(call)
    assert len(logs) == 2


async def test_outages_in_quick_succession_do_not_fill_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "QUIET", 0.0)
    queue = Outage("queue", Stop(), nothing)
    with capture_logs() as logs:
        for _ in range(20):
            await queue.ride_out(Service(failures=2).call)
    assert [entry["event"] for entry in logs] == ["service unavailable, trying again", "service available again"]


async def test_what_must_not_be_asked_in_vain_is_asked_again_only_once_the_service_answers() -> None:
    receive, peek = Service(failures=1), Service(failures=5)
    assert await Outage("queue", Stop(), nothing).ride_out(receive.call, probe=peek.call) == "answer"
    assert (receive.calls, peek.calls) == (2, 6)


async def test_the_wait_that_the_service_asks_for_is_kept_even_if_the_limit_moves_on() -> None:
    attempts: list[float] = []

    async def busy() -> str:
        attempts.append(time.monotonic())
        if len(attempts) == 1:
            raise Throttled("insert: 503 ServerBusy", "ServerBusy", retry_after=0.3)
        return "answer"

    # A lease that is renewed: its end is always a little ahead.
    table = Outage("table", Stop(), nothing)
    assert await table.ride_out(busy, until=lambda: time.monotonic() + 0.05) == "answer"
    assert attempts[1] - attempts[0] >= 0.3


async def test_a_wait_longer_than_any_service_means_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "RETRY_AFTER_MOST", 0.01)
    service = Service(failures=1, error=Throttled("insert: 503 ServerBusy", "ServerBusy", retry_after=86_400))
    async with asyncio.timeout(10):
        assert await Outage("table", Stop(), nothing).ride_out(service.call) == "answer"


async def test_every_refusal_of_a_throttling_service_is_told_and_no_other_failure() -> None:
    told: list[None] = []
    table = Outage("table", Stop(), nothing, lambda: told.append(None))
    await table.ride_out(Service(failures=3).call)
    assert told == []
    await table.ride_out(Service(failures=3, error=Throttled("insert: 503 ServerBusy", "ServerBusy")).call)
    assert len(told) == 3


async def test_what_fails_although_the_service_is_well_is_tried_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outage, "LONGEST_REPEAT", 60)
    attempts: list[float] = []

    async def receive() -> str:
        attempts.append(time.monotonic())
        if len(attempts) < 10:
            raise Unavailable("receive: no answer within 10 s", "Timeout")
        return "answer"

    await Outage("queue", Stop(), nothing).ride_out(receive, probe=Service(failures=0).call)
    assert attempts[-1] - attempts[-2] > 0.1  # the longest wait is else a hundredth of that here
