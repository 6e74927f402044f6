"""What must be known of the logs before their rows are read: how many, how late, split where."""

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from pipelines.dataset.roles import Source
from pipelines.events.buckets import num_buckets
from pipelines.logs.logs import LogFile, count_rows, readable
from pipelines.plans import collect
from pipelines.rows.judged import sound
from pipelines.rows.row_rules import is_sane
from pipelines.work import Work
from recsys_moe.runners import Runner

_TIME_STEPS = (2**27, 1)  # two minutes, then microseconds
_MICROS_PER_HOUR = 3_600_000_000


def counted(work: Work, runner: Runner) -> Work:
    """Add the number of the first row of every file, and how many buckets that many rows need."""
    rows = list(runner.map(_count, work.dataset.source, work.logs))
    events = {
        event.log.name: list(runner.map(_count, event.log.source, event.files))
        for event in work.events
    }
    largest = max([sum(rows), *(sum(counts) for counts in events.values())])
    return replace(
        work,
        first_rows=_starts(rows),
        event_rows={name: _starts(counts) for name, counts in events.items()},
        num_buckets=num_buckets(largest),
    )


def _count(source: Source, log: LogFile) -> int:
    return count_rows(source, log)


def _starts(counts: Sequence[int]) -> tuple[int, ...]:
    """Return where each file starts, and at the end how many rows there are."""
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    return tuple(starts)


def bounded(work: Work, runner: Runner) -> Work:
    """Add until when the logs of events are complete, and the bounds of a split by time."""
    split, until = work.dataset.split, work.dataset.source.until
    if until is None and any(event.log.time in event.columns for event in work.events):
        units = [
            (event.log.name, number)
            for event in work.events
            if event.log.time in event.columns
            for number in range(len(event.files))
        ]
        until = max(
            (late for late in runner.map(_latest, work, units) if late is not None), default=0
        )
    work = replace(work, until=until or 0)
    if split.by != "time":
        return work
    if split.starts is not None:
        return replace(work, starts=split.starts)
    return replace(work, starts=_time_starts(work, runner))


def _latest(work: Work, unit: tuple[str, int]) -> int | None:
    name, number = unit
    column = work.event(name).log.time
    with readable(f"source.{name}", work.dataset.source.format):
        latest = collect(
            work.event_file(name, number).filter(is_sane(column)).select(pl.col(column).max())
        ).item()
    return None if latest is None else int(latest)


def open_from(work: Work) -> int | None:
    """Return from when on rows are too young to keep: their conversions may still come."""
    windows = [
        task.events.attribution_hours
        for task in work.dataset.tasks
        if task.events and task.events.attribution_hours and task.immature == "drop"
    ]
    return work.until - round(max(windows) * _MICROS_PER_HOUR) if windows else None


def _time_starts(work: Work, runner: Runner) -> tuple[int, int]:
    """Return the first timestamps of valid and test, so that the shares are those asked for.

    Rows with the same timestamp stay together, in the later split. Histograms of finer and finer
    steps, each inside the steps that hold the two ranks, need memory for the steps that occur and
    not for the rows.
    """
    split = work.dataset.split
    ranks: list[int] = []
    starts = [0, 0]
    inside: tuple[int, ...] | None = None
    for number, step in enumerate(_TIME_STEPS):
        above = _TIME_STEPS[number - 1] if number else 0
        units = [(file, step, above, inside) for file in range(len(work.logs))]
        counts = (
            pl.concat(runner.map(_histogram, work, units))
            .group_by("start")
            .agg(pl.col("len").sum())
            .sort("start")
        )
        if not len(counts):
            return 0, 0
        if not ranks:
            total = int(counts["len"].sum())
            num_test, num_valid = round(total * split.test_share), round(total * split.valid_share)
            ranks = [
                min(rank, total - 1) for rank in (total - num_test - num_valid, total - num_test)
            ]
        for which in range(2):
            mine = counts
            if inside is not None:
                mine = counts.filter(pl.col("start") * step // above == starts[which])
            below = mine["len"].cum_sum()
            row = int(below.search_sorted(ranks[which], side="right"))  # first with below > rank
            ranks[which] -= int(below[row - 1]) if row else 0
            starts[which] = int(mine["start"][row])
        inside = tuple(starts)
    return starts[0], starts[1]


def _histogram(work: Work, unit: tuple[int, int, int, tuple[int, ...] | None]) -> pl.DataFrame:
    """Count a file's sound, mature rows by steps of time, inside the chosen coarser steps."""
    file, step, above, inside = unit
    column = work.dataset.split.column or ""
    time = pl.col(column)
    rows = sound(work, work.rows(file)).filter(time.is_not_null())
    too_young = open_from(work)
    if too_young is not None and work.dataset.time == column:
        rows = rows.filter(time <= too_young)
    if inside is not None:
        rows = rows.filter((time // above).is_in(list(inside)))
    plan = rows.group_by(start=time // step).agg(pl.len().cast(pl.Int64))
    with readable(f"dataset {work.dataset.name!r}, source", work.dataset.source.format):
        return collect(plan)
