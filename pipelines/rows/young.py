"""Rows whose conversions may still come when the logs end: dropped, masked or weighted."""

from collections.abc import Iterator

import polars as pl

from pipelines.dataset.task_roles import TaskRole
from pipelines.events.attribution import delay_of, start_of, timed_tasks, window_of
from pipelines.rows.judged import SPLIT
from pipelines.rows.maturity import is_mature, label_weight
from pipelines.rows.maturity import label as seen_label
from pipelines.work import Work


def add_maturity(work: Work, batch: pl.DataFrame) -> pl.DataFrame:
    """Add whether each row's label of a delayed task is final, and its weight where it is not."""
    for task in timed_tasks(work):
        start, time = pl.col(start_of(task)), pl.col(work.dataset.time or "")
        if task.events is not None and task.events.after is None:
            start = time
        timing = batch.select(time=time, start=start, delay=pl.col(delay_of(task)))
        window, until = window_of(task), work.until
        batch = batch.with_columns(
            timing.select(is_mature(window, until)).to_series().alias(_mature(task))
        )
        if task.immature == "weight":
            seen = timing.select(seen_label(window, until)).to_series()
            batch = batch.with_columns(seen.alias(_seen(task)))
            what = f"dataset {work.dataset.name!r}, {task.path}"
            weight = label_weight(work.delays[task.name], window, until, what)
            batch = batch.with_columns(timing.select(weight).to_series().alias(_weight(task)))
    return batch


def too_young(work: Work) -> Iterator[pl.Expr]:
    """Yield the reason why a row is left out, for each task whose young rows are dropped."""
    for task in timed_tasks(work):
        if task.immature == "drop":
            reason = pl.lit(f"too young: {task.name} may still come")
            yield pl.when(~pl.col(_mature(task))).then(reason)


def settled(task: TaskRole, label: pl.Expr) -> pl.Expr:
    """Return a label, null where it is not final and not weighted: always in valid and test."""
    if not window_of(task) or task.immature in ("count", "drop"):
        return label
    final = pl.col(_mature(task))
    if task.immature == "mask":
        return pl.when(final).then(label)
    in_train = pl.when(pl.col(SPLIT) == "train").then(pl.col(_seen(task)))
    return pl.when(final).then(label).otherwise(in_train)


def maturity_weights(work: Work) -> dict[str, pl.Expr]:
    """Return how much labels count, for the tasks whose young rows are weighted."""
    return {
        task.name: pl.when(pl.col(SPLIT) == "train").then(pl.col(_weight(task))).otherwise(1.0)
        for task in timed_tasks(work)
        if task.immature == "weight"
    }


def _mature(task: TaskRole) -> str:
    return f"\x1fmature {task.name}"


def _seen(task: TaskRole) -> str:
    return f"\x1fseen {task.name}"


def _weight(task: TaskRole) -> str:
    return f"\x1fweight of young {task.name}"
