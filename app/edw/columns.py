"""Rows in columns for a terminal: no wider than it is, and nothing in them that it would obey."""

from collections.abc import Iterable, Iterator, Sequence
from unicodedata import east_asian_width

GAP = "  "
LEAST = 4
"""Characters that a column keeps however narrow the terminal is."""


def lines(header: Sequence[str], rows: Iterable[Sequence[str]], width: int, whole: int) -> Iterator[str]:
    """The header and the rows as lines of at most `width`; the first `whole` columns are not shortened."""
    # Cut before they are escaped: only so much of 64 KiB can be shown.
    cells = [[visible(cell[: width + 1]) for cell in row] for row in (header, *rows)]
    widths = [max(map(_places, column)) for column in zip(*cells, strict=True)]
    shortened = range(whole, len(widths))
    while sum(widths) + len(GAP) * (len(widths) - 1) > width:
        widest = max(shortened, key=widths.__getitem__)
        if widths[widest] <= LEAST:
            break
        widths[widest] -= 1
    for row in cells:
        fitted = (_fitted(cell, places) for cell, places in zip(row, widths, strict=True))
        yield _fitted(GAP.join(fitted).rstrip(), width).rstrip()


def visible(text: str) -> str:
    """The text with what a terminal would obey, or not show, as escape sequences of Python."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _fitted(text: str, width: int) -> str:
    """The text in exactly `width` places; an ellipsis ends what is cut."""
    if _places(text) > width:
        text = text[:width]
        while _places(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _places(text))


def _places(text: str) -> int:
    """Places on the screen: two for a wide character."""
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)
