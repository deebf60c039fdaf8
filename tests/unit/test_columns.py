"""Columns for a terminal."""

import pytest

from edw import columns

HEADER = ("time", "reason", "body")


def shown(*rows: tuple[str, str, str], width: int = 40) -> list[str]:
    return list(columns.lines(HEADER, rows, width, whole=1))


def test_columns_are_as_wide_as_what_is_in_them() -> None:
    assert shown(("12:00", "not JSON", "x")) == ["time   reason    body", "12:00  not JSON  x"]


@pytest.mark.parametrize("width", [1, 10, 20, 30, 40, 200])
@pytest.mark.parametrize("char", ["x", "語", "😀", "\x1b", "\n"])
def test_no_line_is_wider_than_the_terminal(width: int, char: str) -> None:
    for line in shown(("12:00:00", char * 500, "y"), ("12:00:01", "short", char * 70_000), width=width):
        assert sum(2 if letter in "語😀" else 1 for letter in line) <= width


def test_the_longest_columns_are_shortened_and_the_first_ones_stay_whole() -> None:
    assert shown(("2026-11-23 12:00", "r" * 50, "ok"), width=40)[1] == "2026-11-23 12:00  " + "r" * 15 + "…  ok"


def test_what_a_terminal_would_obey_is_shown_as_an_escape_sequence() -> None:
    line = shown(("12:00", "\x1b[2J\x07\r\n\x9b", "a\u202eb\u200b"), width=100)[1]
    assert line == r"12:00  \x1b[2J\x07\r\n\x9b  a\u202eb\u200b"
