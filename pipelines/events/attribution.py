"""Logs of events to labels: impressions and events meet in buckets, by the impression's id."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from pipelines.dataset.task_roles import TaskRole
from pipelines.events.attributed import Attributed, LogRows, add_counts, attribute_bucket
from pipelines.events.buckets import read_bucket, units
from pipelines.events.scatter import (
    ID,
    IMPRESSIONS,
    SOUND,
    TIME,
    TRAIN,
    Totals,
    label_of,
    moment_of,
    past_keys,
    past_tasks,
    scatter_events,
    scatter_impressions,
    scatter_past,
)
from pipelines.events.windows import Windows, write_rows
from pipelines.plans import collect
from pipelines.rows.judged import REASON
from pipelines.rows.maturity import Delays, delay_counts
from pipelines.rows.quarantine import check_quarantine, sorted_reasons, write_quarantine
from pipelines.work import ROW_ID, Work, file_batches
from recsys_moe.runners import Runner

DUPLICATE = "\x1fduplicate"
_LABELS, _BAD = "labels", "bad"


def window_of(task: TaskRole) -> int:
    """Return how long an event of a task counts, microseconds; 0 is for ever."""
    return round((task.events.attribution_hours or 0) * 3_600_000_000) if task.events else 0


def start_of(task: TaskRole) -> str:
    """Return the column that says from when a row's events count."""
    return f"\x1fstart of {task.name}"


def delay_of(task: TaskRole) -> str:
    """Return the column that says how long a row's first event took."""
    return f"\x1fdelay of {task.name}"


def timed_tasks(work: Work) -> list[TaskRole]:
    """Return the tasks whose label may not be final when the logs end."""
    return [t for t in work.dataset.tasks if window_of(t) and t.immature != "count"]


@dataclass(frozen=True, slots=True)
class _Bucket:
    """What the attribution of one bucket adds up to."""

    counts: dict[str, Any]
    totals: Totals
    delays: dict[str, Delays]


def attribute(
    work: Work, runner: Runner, max_quarantine_share: float
) -> tuple[Work, Totals, dict[str, dict[str, Any]]]:
    """Join the logs of events to the impressions, into a stage that `label_windows` reads.

    Events that cannot be an impression's are written to `quarantine/<log>/` with their reason.

    Args:
        work: The build.
        runner: Who runs files and buckets.
        max_quarantine_share: The share of a log above which unusable events are an error.

    Returns:
        The work with the delays of positives; what the rows add up to; the report of each log.

    Raises:
        RequestError: A log cannot be read.
        DataError: Too much of a log cannot be used.
    """
    for _ in runner.map(scatter_impressions, work, units(work.first_rows)):
        pass
    groups = [(name, group) for name, rows in work.event_rows.items() for group in units(rows)]
    for _ in runner.map(scatter_events, work, groups):
        pass
    totals = Totals()
    counts: dict[str, Any] = {event.log.name: {} for event in work.events}
    delays: dict[str, Delays] = {}
    for bucket in runner.map(_attribute_bucket, work, range(work.num_buckets)):
        counts = add_counts(counts, bucket.counts)
        totals.add(bucket.totals)
        for task, found in bucket.delays.items():
            delays[task] = delays[task] + found if task in delays else found
    files = [(e.log.name, number) for e in work.events for number in range(len(e.files))]
    for _ in runner.map(_quarantine_file, work, files):
        pass
    for name, report in counts.items():
        reasons, rows_in = Counter(report["quarantine"]), report["rows_in"]
        report["quarantine"] = sorted_reasons(reasons)
        limit = f"wanted at most {max_quarantine_share:.2%} of the {name}"
        what = f"dataset {work.dataset.name!r}: {limit}"
        folder = work.output / "quarantine" / name
        check_quarantine(what, reasons, rows_in, max_quarantine_share, folder)
    return replace(work, delays=delays), totals, counts


def label_windows(work: Work) -> list[Windows]:
    """Return what events say of rows, of those with any; none where labels are columns."""
    return [Windows(work.stage(_LABELS))] if work.events else []


def filled_labels(work: Work) -> list[pl.Expr]:
    """Return the labels of all rows: one that no event speaks of has 0, a sum is unknown."""
    return [
        pl.col(task.column).fill_null(0)
        for task in work.dataset.tasks
        if task.events is not None and task.events.value is None
    ]


def _attribute_bucket(work: Work, bucket: int) -> _Bucket:
    """Write labels, orphaned events and, where there is a past, labelled rows of one bucket."""
    kind = (
        pl.String() if work.columns[work.dataset.source.join or ""].type == "string" else pl.Int64()
    )
    rows = read_bucket(work.stage(IMPRESSIONS), bucket)
    if rows is None:
        rows = pl.DataFrame(schema={ROW_ID: pl.Int64(), ID: kind, TIME: pl.Int64()})
    logs = [_log_rows(work, event.log.name, bucket, kind) for event in work.events]
    found = attribute_bucket(rows, logs, work.dataset.tasks, work.dataset.source.join or "")
    write_rows(found.bad, work.stage(_BAD) / f"{bucket:05}.parquet", work.num_buckets)
    if not len(rows):
        return _Bucket(found.counts, Totals(), {})
    spoken = work.stage(_LABELS) / f"{bucket:05}.parquet"
    write_rows(_spoken_of(work, found), spoken, work.num_buckets)
    usable = rows.filter(SOUND).join(found.labels.select(ROW_ID), on=ROW_ID, how="semi")
    totals = Totals()
    if past_keys(work):
        totals = scatter_past(work, f"{bucket:05}", iter([_with_labels(work, usable, found)]))
    train = usable.filter(TRAIN).select(ROW_ID)
    delays = {
        task.name: delay_counts(
            found.timings[task.name].join(train, on=ROW_ID, how="semi"), window_of(task), work.until
        )
        for task in timed_tasks(work)
        if task.immature == "weight"
    }
    return _Bucket(found.counts, totals, delays)


def _log_rows(work: Work, name: str, bucket: int, kind: pl.DataType) -> LogRows:
    log = work.event(name).log
    rows = read_bucket(work.stage(f"events-{name}"), bucket)
    if rows is None:
        times = {ROW_ID: pl.Int64(), ID: kind, TIME: pl.Int64(), "value": pl.Float64()}
        rows = pl.DataFrame(schema=times)
    return LogRows(name=name, join=log.join, time=log.time, rows=rows)


def _spoken_of(work: Work, found: Attributed) -> pl.DataFrame:
    """Return the labels and timings of the rows that events speak of, and the duplicates."""
    labels = found.labels
    for task in timed_tasks(work):
        timing = found.timings[task.name]
        labels = labels.with_columns(
            timing["start"].alias(start_of(task)), timing["delay"].alias(delay_of(task))
        )
    columns = [name for name in labels.columns if name != ROW_ID]
    starts = {
        start_of(task) for task in timed_tasks(work) if not (task.events and task.events.after)
    }
    sums = {task.column for task in work.dataset.tasks if task.events and task.events.value}
    silent = pl.all_horizontal(
        pl.col(name).is_null() if name in sums else pl.col(name).fill_null(0) == 0
        for name in columns
        if name not in starts
    )
    spoken = labels.filter(~silent).with_columns(pl.lit(False).alias(DUPLICATE))
    again = pl.DataFrame(
        {ROW_ID: found.duplicates, DUPLICATE: True}, schema_overrides={DUPLICATE: pl.Boolean}
    )
    return pl.concat([spoken, again], how="diagonal_relaxed").sort(ROW_ID)


def _with_labels(work: Work, rows: pl.DataFrame, found: Attributed) -> pl.DataFrame:
    """Add labels, and when they became positive, to the rows that have a past to give."""
    rows = rows.drop(ID, SOUND).sort(ROW_ID)
    labels = found.labels.join(rows.select(ROW_ID), on=ROW_ID, how="semi", maintain_order="left")
    for task in past_tasks(work):
        if task.events is None:
            moment = pl.when(pl.col(label_of(task.name)) > 0).then(pl.col(TIME))
            rows = rows.with_columns(moment.alias(moment_of(task.name)))
            continue
        timing = found.timings[task.name].join(
            rows.select(ROW_ID), on=ROW_ID, how="semi", maintain_order="left"
        )
        rows = rows.with_columns(
            labels[task.column].cast(pl.Float64).alias(label_of(task.name)),
            (timing["start"] + timing["delay"]).alias(moment_of(task.name)),
        )
    return rows


def _quarantine_file(work: Work, unit: tuple[str, int]) -> None:
    """Write the orphaned events of one file as they came."""
    name, number = unit
    first, beyond = work.event_rows[name][number : number + 2]
    bad = collect(
        pl.scan_parquet(work.stage(_BAD) / "*.parquet").filter(
            (pl.col("log") == name) & pl.col(ROW_ID).is_between(first, beyond - 1)
        )
    )
    if not len(bad):
        return
    bad = bad.select(ROW_ID, pl.col("reason").alias(REASON))
    source, plan = work.event(name).log.source, work.event_file(name, number)
    for part, batch in enumerate(file_batches(f"source.{name}", source, plan)):
        rows = batch.join(bad, on=ROW_ID, how="inner", maintain_order="left")
        if len(rows):
            folder = work.output / "quarantine" / name
            write_quarantine(rows, folder / f"part-{number:05}-{part:05}.parquet")
