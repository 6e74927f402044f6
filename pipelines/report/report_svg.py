"""Small pictures of a features report, as SVG that stands inside the page and prints."""

from collections.abc import Mapping, Sequence
from html import escape

INK, LINE = "#1b1f24", "#d0d7de"
COLOURS = {"train": "#0b57a4", "valid": "#b35900", "test": "#1a7f4b"}
DASHES = {"train": "", "valid": "6 3", "test": "2 2"}


def bar(share: float, colour: str, width: int = 90) -> str:
    """Return a horizontal bar that fills a share of its width."""
    filled = round(width * min(max(share, 0.0), 1.0), 1)
    return (
        f'<svg class="bar" width="{width}" height="10" aria-hidden="true">'
        f'<rect width="{width}" height="10" fill="#eef1f4"/>'
        f'<rect width="{filled}" height="10" fill="{colour}"/></svg>'
    )


def marked_bar(value: float, most: float, marks: Sequence[float], colour: str) -> str:
    """Return a bar for a value on a scale up to `most`, with a tick at each mark."""
    width = 130
    ticks = "".join(
        f'<line x1="{x}" x2="{x}" y1="0" y2="14" stroke="{INK}" stroke-dasharray="2 1"/>'
        for x in (round(width * mark / most, 1) for mark in marks if mark <= most)
    )
    filled = round(width * min(value / most, 1.0), 1)
    return (
        f'<svg class="bar" width="{width}" height="14" aria-hidden="true">'
        f'<rect y="2" width="{width}" height="10" fill="#eef1f4"/>'
        f'<rect y="2" width="{filled}" height="10" fill="{colour}"/>{ticks}</svg>'
    )


def stacked_bar(parts: Sequence[tuple[str, int, str]], width: int = 1000) -> str:
    """Return one bar cut into parts: word, count and colour of each."""
    total, left, pieces = max(sum(count for _, count, _ in parts), 1), 0.0, []
    for word, count, colour in parts:
        wide = width * count / total
        label = f"{word} {count / total:.0%}"
        text = ""
        if wide > 8 * len(label):
            text = (
                f'<text x="{left + wide / 2:.1f}" y="19" fill="#fff" text-anchor="middle">'
                f"{escape(label)}</text>"
            )
        pieces.append(
            f'<g><title>{escape(word)}: {count:,}</title><rect x="{left:.1f}" '
            f'width="{wide:.1f}" height="28" fill="{colour}" stroke="#fff"/>{text}</g>'
        )
        left += wide
    return (
        f'<svg class="wide" viewBox="0 0 {width} 28" role="img" aria-label="Where the rows went">'
        f"{''.join(pieces)}</svg>"
    )


def day_lines(title: str, series: Mapping[str, Sequence[tuple[str, float]]], percent: bool) -> str:
    """Return a line a split over the days of all of them, from 0.

    Args:
        title: What is drawn, for those who do not see it.
        series: By split, (day, value) in order.
        percent: Whether values are shares.
    """
    days = sorted({day for points in series.values() for day, _ in points})
    values = [value for points in series.values() for _, value in points]
    if not days:
        return ""
    top = _round_up(max(values)) if max(values) > 0 else 1.0
    low = min(0.0, min(values))
    left, right, upper, lower = 60, 615, 14, 170

    def across(day: str) -> float:
        place = days.index(day) / (len(days) - 1) if len(days) > 1 else 0.5
        return round(left + (right - left) * place, 1)

    def up(value: float) -> float:
        return round(lower - (lower - upper) * (value - low) / (top - low), 1)

    grid = "".join(
        f'<line x1="{left}" x2="{right}" y1="{up(tick)}" y2="{up(tick)}" stroke="{LINE}"/>'
        f'<text x="{left - 8}" y="{up(tick) + 4}" text-anchor="end">'
        f"{f'{tick:.3g}' if not percent else f'{100 * tick:.3g}%'}</text>"
        for tick in (low + (top - low) * n / 4 for n in range(5))
    )
    ends = [(days[0], "start"), (days[-1], "end")] if len(days) > 1 else [(days[0], "middle")]
    dates = "".join(
        f'<text x="{across(day)}" y="{lower + 18}" text-anchor="{anchor}">{day}</text>'
        for day, anchor in ends
    )
    lines = []
    for split, points in series.items():
        xy = [(across(day), up(value)) for day, value in points]
        path = " ".join(f"{x},{y}" for x, y in xy)
        dots = "".join(marker(split, x, y) for x, y in (xy if len(xy) < 60 else ()))
        lines.append(
            f'<g fill="{COLOURS[split]}"><polyline points="{path}" fill="none" '
            f'stroke="{COLOURS[split]}" stroke-width="2" stroke-dasharray="{DASHES[split]}"/>'
            f"{dots}</g>"
        )
    return (
        f'<svg class="chart" viewBox="0 0 640 195" role="img" aria-label="{escape(title)}">'
        f"{grid}{dates}{''.join(lines)}</svg>"
    )


def marker(split: str, x: float, y: float) -> str:
    """Return the mark of a split: a disc for train, a square for valid, a triangle for test."""
    if split == "valid":
        return f'<rect x="{x - 3.5}" y="{y - 3.5}" width="7" height="7"/>'
    if split == "test":
        return f'<path d="M{x} {y - 4.5}l4.5 8h-9z"/>'
    return f'<circle cx="{x}" cy="{y}" r="3"/>'


def legend(splits: Sequence[str]) -> str:
    """Return the line style of each split, with its name."""
    entries = "".join(
        f'<span><svg width="34" height="10" aria-hidden="true"><line x1="0" x2="34" y1="5" y2="5" '
        f'stroke="{COLOURS[split]}" stroke-width="2" stroke-dasharray="{DASHES[split]}"/>'
        f'<g fill="{COLOURS[split]}">{marker(split, 17, 5)}</g></svg> {split}</span>'
        for split in splits
    )
    return f'<p class="legend">{entries}</p>'


def _round_up(value: float) -> float:
    """Return the next 1, 2, 4 or 5 times a power of ten.

    >>> _round_up(0.17), _round_up(3.2), _round_up(100)
    (0.2, 4.0, 100.0)
    """
    power = 10.0 ** len(str(int(value))) if value >= 1 else 1.0
    while power > value:
        power /= 10
    steps = (step * power for step in (1, 2, 4, 5, 10))
    return float(f"{next(step for step in steps if step >= value * (1 - 1e-12)):.6g}")
