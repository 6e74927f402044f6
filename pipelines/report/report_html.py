"""The pieces that the pages of reports are made of: text for numbers, and tables."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any

NONE = "n/a"


def percent(value: float | None) -> str:
    """Return a share as text that never rounds something to nothing.

    >>> percent(0.0), percent(0.00001), percent(0.12345), percent(None)
    ('0%', '<0.01%', '12.3%', 'n/a')
    """
    if value is None:
        return NONE
    if value in (0, 1):
        return f"{value:.0%}"
    if value < 0.0001:
        return "<0.01%"
    return f"{value:.2%}" if value < 0.1 else f"{min(value, 0.9999):.1%}"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already; the first of a row names it."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f"<table><caption>{caption}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>\n{body}\n</tbody></table>"
    )


def short(text: str, most: int = 32) -> str:
    """Return the beginning of a text that is too long for its place."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def plain(value: Any) -> str:
    """Return a value of a report as HTML."""
    if isinstance(value, (list, tuple)):
        return escape(", ".join(str(entry) for entry in value)) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return NONE if value is None else escape(str(value))


def span(moments: Sequence[int] | None) -> str:
    """Return first and last moment, microseconds UTC, as text."""
    if moments is None:
        return "no time given"
    start = datetime(1970, 1, 1, tzinfo=UTC)
    first, last = (start + timedelta(microseconds=moment) for moment in moments)
    return f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}"
