"""Counts and percentiles."""

import pytest

from edw.tally import SAMPLE, Tally, percentiles


def test_percentiles_of_a_known_distribution() -> None:
    assert percentiles([number / 100 for number in range(101)]) == {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def test_percentiles_of_one_and_of_none() -> None:
    assert percentiles([2.0]) == {"p50": 2.0, "p95": 2.0, "p99": 2.0}
    assert percentiles([]) == {"p50": None, "p95": None, "p99": None}


def test_any_number_of_messages_takes_the_same_memory_and_keeps_the_percentiles() -> None:
    tally = Tally()
    for number in range(5 * SAMPLE):
        tally.add_stored(number / (5 * SAMPLE))
    assert len(tally._times) == SAMPLE
    assert tally.summary()["p50"] == pytest.approx(0.5, abs=0.05)
    assert tally.summary()["stored"] == 5 * SAMPLE
