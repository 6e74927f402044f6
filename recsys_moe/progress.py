"""What a command says while it works: a bar on a terminal, plain timed lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_STARTED = time.monotonic()
_SECONDS_BETWEEN_LINES = 10.0


def say(stage: str, text: str) -> None:
    """Print one timed line of progress to stdout."""
    print(f"[{time.monotonic() - _STARTED:7.1f} s] {stage:<9} {text}", flush=True)


def warn(stage: str, text: str) -> None:
    """Print one timed line about something that does not stop the work to stderr."""
    sys.stdout.flush()
    line = f"[{time.monotonic() - _STARTED:7.1f} s] {stage:<9} warning: {text}"
    print(line, file=sys.stderr, flush=True)


@contextmanager
def progress(stage: str, total: int, unit: str = "rows") -> Iterator[Callable[[int], None]]:
    """Yield a function that takes how much more is done, and show it as it grows.

    On a terminal (with `rich` installed, as the `train` extra does) it is a bar with rate and
    time left; elsewhere a timed line every ten seconds.
    """
    if sys.stdout.isatty():
        try:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )
        except ModuleNotFoundError:
            yield from _lines(stage, total, unit)
            return
        columns = TextColumn(f"{stage:<9}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit)
        with Progress(*columns, TimeRemainingColumn(), transient=True) as bar:
            task = bar.add_task(stage, total=total)
            yield lambda more: bar.advance(task, more)
        return
    yield from _lines(stage, total, unit)


def _lines(stage: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    done, started = 0, time.monotonic()
    last = started

    def advance(more: int) -> None:
        nonlocal done, last
        done += more
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            rate = done / (now - started)
            left = (total - done) / rate if rate else float("inf")
            say(stage, f"{done:,} of {total:,} {unit}, {rate:,.0f} a second, {left:,.0f} s left")
            last = now

    yield advance
