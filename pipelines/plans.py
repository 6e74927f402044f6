"""Lazy plans and the one place that runs them: streaming, and some rows at a time.

Every plan over a log or a prepared split is run by `collect` or `batches`. What they run, tests can
watch: a plan with a node that falls back to memory is refused there (`in_memory_nodes`).
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import polars as pl

BATCH_ROWS = 65_536
ALLOWED: tuple[str, ...] = ()
"""Nodes that hold all rows and may stand in a plan nevertheless, with the reason beside each."""

_watchers: list[Callable[[pl.LazyFrame], None]] = []


def collect(plan: pl.LazyFrame) -> pl.DataFrame:
    """Run a plan whose result is small: counts, bounds, a vocabulary."""
    _show(plan)
    return plan.collect(engine="streaming")


def batches(plan: pl.LazyFrame, rows: int = BATCH_ROWS) -> Iterator[pl.DataFrame]:
    """Yield the rows of a plan in order, the same number each time, fewer at the end."""
    _show(plan)
    yield from plan.collect_batches(chunk_size=rows, maintain_order=True, engine="streaming")


@contextmanager
def watched(watcher: Callable[[pl.LazyFrame], None]) -> Iterator[None]:
    """Call a function with every plan before it is run."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def in_memory_nodes(plan: pl.LazyFrame) -> list[str]:
    """Return the nodes of the physical plan that hold all rows: fallbacks and whole columns."""
    graph = plan.show_graph(engine="streaming", plan_stage="physical", raw_output=True) or ""
    names = re.findall(r'\[label="([a-z-]+)', graph)
    held = ("in-memory-map", "in-memory-join", "columnar-function")
    return [name for name in names if name in held]


def _show(plan: pl.LazyFrame) -> None:
    for watcher in _watchers:
        watcher(plan)
