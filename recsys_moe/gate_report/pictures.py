"""Small pictures of the gates page, as SVG inside it, and colours that stand for numbers."""

from collections.abc import Sequence
from html import escape

LINE = "#d0d7de"
COLOURS = (
    "#0b57a4",
    "#b35900",
    "#1a7f4b",
    "#a40e26",
    "#6639a6",
    "#7a5c00",
    "#b83280",
    "#00767a",
    "#57606a",
    "#3f7d00",
)
DASHES = ("", "7 3", "2 2", "9 2 2 2")
_BLUE, _RED, _GREEN = (11, 87, 164), (178, 32, 32), (20, 120, 70)


def colour(expert: int) -> str:
    """Return the colour of an expert's lines and bars."""
    return COLOURS[expert % len(COLOURS)]


def heat(share: float) -> str:
    """Return a cell's style for a number from 0 to 1: white to blue."""
    return _shade(_BLUE, share)


def effect(share: float) -> str:
    """Return a cell's style for a number from -1 to 1: green where it helps, red where it hurts."""
    return _shade(_RED if share > 0 else _GREEN, abs(share) * 0.8)


def _shade(full: tuple[int, int, int], share: float) -> str:
    share = min(max(share, 0.0), 1.0)
    red, green, blue = (round(255 + (end - 255) * share) for end in full)
    ink = ";color:#fff" if share > 0.55 else ""
    return f' style="background:rgb({red},{green},{blue}){ink}"'


def bar(share: float, fill: str, width: int = 60) -> str:
    """Return a horizontal bar that fills a share of its width."""
    filled = round(width * min(max(share, 0.0), 1.0), 1)
    return (
        f'<svg class="bar" width="{width}" height="9" aria-hidden="true">'
        f'<rect width="{width}" height="9" fill="#eaeef2"/>'
        f'<rect width="{filled}" height="9" fill="{fill}"/></svg>'
    )


def spread(histogram: Sequence[float], low: float, middle: float, high: float, fill: str) -> str:
    """Return a histogram over 0 to 1 with its 10, 50 and 90 % quantiles under it.

    Heights go by the square root, so that rare weights can be seen.
    """
    width, height, wide = 104, 20, 104 / len(histogram)
    most = max(histogram) or 1.0
    bars = "".join(
        f'<rect x="{wide * n:.1f}" y="{height * (1 - (share / most) ** 0.5):.1f}" '
        f'width="{wide - 0.6:.1f}" height="{height * (share / most) ** 0.5:.1f}"/>'
        for n, share in enumerate(histogram)
        if share > 0
    )
    a, b, c = (round(width * min(value, 1.0), 1) for value in (low, middle, high))
    return (
        f'<svg class="spread" width="{width}" height="28" role="img" '
        f'aria-label="10 % {low:.3f}, 50 % {middle:.3f}, 90 % {high:.3f}">'
        f"<title>10 %: {low:.3f}, 50 %: {middle:.3f}, 90 %: {high:.3f}</title>"
        f'<g fill="{fill}" opacity="0.75">{bars}</g>'
        f'<line x1="0" x2="{width}" y1="20.5" y2="20.5" stroke="{LINE}"/>'
        f'<line x1="{a}" x2="{c}" y1="24.5" y2="24.5" stroke="#424a53" stroke-width="1.5"/>'
        f'<circle cx="{b}" cy="24.5" r="2.7" fill="#1b1f24"/></svg>'
    )


def lines(
    title: str, steps: Sequence[float], series: Sequence[tuple[int, str, Sequence[float]]]
) -> str:
    """Return shares over steps, a line an expert.

    Args:
        title: What is drawn, for those who do not see it.
        steps: Where the points are.
        series: Each expert's number, name and values.
    """
    left, right, upper, lower = 46, 500, 10, 165
    most = max([value for _, _, values in series for value in values] or [1.0]) or 1.0
    top = next(t for t in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, most) if t >= most)
    first, last = steps[0], steps[-1]

    def across(step: float) -> float:
        place = (step - first) / (last - first) if last > first else 0.5
        return round(left + (right - left) * place, 1)

    def up(value: float) -> float:
        return round(lower - (lower - upper) * value / top, 1)

    grid = "".join(
        f'<line x1="{left}" x2="{right}" y1="{up(tick)}" y2="{up(tick)}" stroke="{LINE}"/>'
        f'<text x="{left - 6}" y="{up(tick) + 4}" text-anchor="end">{100 * tick:.3g}%</text>'
        for tick in (top * n / 4 for n in range(5))
    )
    ends = ((first, "start"), (last, "end")) if last > first else ((first, "middle"),)
    labels = "".join(
        f'<text x="{across(step)}" y="{lower + 16}" text-anchor="{anchor}">step {step:,}</text>'
        for step, anchor in ends
    )
    drawn = []
    for number, name, values in series:
        points = " ".join(
            f"{across(step)},{up(value)}" for step, value in zip(steps, values, strict=True)
        )
        dash = DASHES[number // len(COLOURS) % len(DASHES)]
        drawn.append(
            f'<g><title>{escape(name)}</title><polyline points="{points}" fill="none" '
            f'stroke="{colour(number)}" stroke-width="2" stroke-dasharray="{dash}"/></g>'
        )
    return (
        f'<svg class="chart" viewBox="0 0 510 188" role="img" aria-label="{escape(title)}">'
        f"{grid}{labels}{''.join(drawn)}</svg>"
    )


def legend(names: Sequence[str]) -> str:
    """Return each expert's line with its name."""
    entries = "".join(
        f'<span><svg width="26" height="10" aria-hidden="true"><line x1="0" x2="26" y1="5" y2="5" '
        f'stroke="{colour(number)}" stroke-width="3" '
        f'stroke-dasharray="{DASHES[number // len(COLOURS) % len(DASHES)]}"/></svg> '
        f"{number} {escape(name)}</span>"
        for number, name in enumerate(names)
    )
    return f'<p class="legend">{entries}</p>'
