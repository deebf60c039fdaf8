"""How concurrency shrinks and grows back."""

import pytest

from edw import limit
from edw.limit import Limit


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(limit.time, "monotonic", lambda: now[0])
    return now


def test_it_halves_once_for_all_that_is_refused_at_the_same_moment(clock: list[float]) -> None:
    concurrency = Limit(64)
    for _ in range(50):
        concurrency.shrink()
    assert concurrency.now == 32
    clock[0] += 1.5
    concurrency.shrink()
    assert concurrency.now == 16


def test_one_at_a_time_is_the_least(clock: list[float]) -> None:
    concurrency = Limit(4)
    for _ in range(10):
        concurrency.shrink()
        clock[0] += 1.5
    assert concurrency.now == 1


def test_it_grows_back_by_one_for_each_round_of_successes_and_no_further_than_it_was(clock: list[float]) -> None:
    concurrency = Limit(64)
    concurrency.shrink()
    for _ in range(33):
        concurrency.grow()
    assert concurrency.now == 33
    for _ in range(10_000):
        concurrency.grow()
    assert concurrency.now == 64
    assert clock
