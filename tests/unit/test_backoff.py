"""Waits that grow."""

from edw.backoff import Backoff


def test_waits_double_within_a_fifth_and_never_pass_the_upper_bound() -> None:
    waits = Backoff(0.1, 5.0)
    for expected in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0):
        assert expected * 0.8 <= waits.next() <= min(expected * 1.2, 5.0)


def test_a_reset_starts_again_from_the_lower_bound() -> None:
    waits = Backoff(0.1, 5.0)
    for _ in range(5):
        waits.next()
    waits.reset()
    assert waits.next() <= 0.12


def test_replicas_do_not_wait_in_step() -> None:
    assert len({Backoff(0.1, 5.0).next() for _ in range(20)}) > 1
