"""Histories and aggregates of all rows, key by key and bucket by bucket."""

from pathlib import Path
from urllib.parse import quote

import polars as pl

from pipelines.dataset.past_roles import AggregateRole, HistoryRole
from pipelines.events.buckets import read_bucket
from pipelines.events.scatter import (
    TIME,
    TRAIN,
    Totals,
    label_of,
    moment_of,
    past_folder,
    past_keys,
)
from pipelines.events.windows import Windows, write_rows
from pipelines.past.aggregates import aggregate, lookup
from pipelines.past.histories import MICROS_PER_DAY, capped, history
from pipelines.work import ROW_ID, Work
from recsys_moe.files import whole_file
from recsys_moe.runners import Runner

_VALUES = "past-values"


def add_past(work: Work, totals: Totals, runner: Runner) -> dict[str, int]:
    """Compute every history and aggregate into a stage that `past_windows` reads.

    Args:
        work: The build, its rows scattered by every key of the past.
        totals: What those rows add up to.
        runner: Who runs the buckets.

    Returns:
        How many events each history left out as too many in a day.
    """
    keys = range(len(past_keys(work)))
    units = [(place, bucket) for place in keys for bucket in range(work.num_buckets)]
    left_out = {role.name: 0 for role in work.dataset.histories}
    for counts in runner.map(_past_bucket, (work, totals), units):
        for name, count in counts.items():
            left_out[name] += count
    _write_lookups(work)
    return left_out


def past_windows(work: Work) -> list[Windows]:
    """Return what histories and aggregates say of each row, for each key."""
    folders = (work.stage(_VALUES) / str(place) for place in range(len(past_keys(work))))
    return [windows for windows in map(Windows, folders) if not windows.is_empty]


def _past_bucket(shared: tuple[Work, Totals], unit: tuple[int, int]) -> dict[str, int]:
    """Write the histories and aggregates of one bucket of one key."""
    (work, totals), (place, bucket) = shared, unit
    of = past_keys(work)[place]
    rows = read_bucket(work.stage(past_folder(place)), bucket)
    if rows is None:
        return {}
    rows = rows.sort(ROW_ID).with_columns(pl.col(of).alias("key"))
    values, left_out = [rows.select(ROW_ID)], {}
    for role in work.dataset.histories:
        if role.of == of:
            found, left_out[role.name] = _history(rows, role)
            values.append(found.drop(ROW_ID))
    for one in work.dataset.aggregates:
        if one.of == of:
            told = _told(rows, one, work)
            prior = totals.mean(one.target or "")
            values.append(aggregate(told, one, prior).drop(ROW_ID))
            day = totals.last.get(one.refresh, 0) // MICROS_PER_DAY + 1
            table = lookup(told, one, prior, day)
            write_rows(table, _lookup_parts(work, one) / f"{bucket:05}.parquet", work.num_buckets)
    path = work.stage(_VALUES) / str(place) / f"{bucket:05}.parquet"
    write_rows(pl.concat(values, how="horizontal"), path, work.num_buckets)
    return left_out


def _history(rows: pl.DataFrame, role: HistoryRole) -> tuple[pl.DataFrame, int]:
    """Return a history of a bucket's rows, and how many events are too many in a day."""
    happened = rows.filter(pl.col(label_of(role.events)) > 0)
    moment = pl.col(moment_of(role.events)).alias(TIME)
    events = happened.select("key", moment, ROW_ID, *role.columns)
    return history(rows, events, role), capped(events, role)[1]


def _told(rows: pl.DataFrame, role: AggregateRole, work: Work) -> pl.DataFrame:
    """Return rows as aggregates take them: what counts, with which value, and since when."""
    value, more = pl.lit(None, pl.Float64), []
    task = next((task for task in work.dataset.tasks if task.name == role.target), None)
    if task is not None:
        value = pl.col(label_of(task.name))
        if task.events is not None:
            more = [pl.col(moment_of(task.name)).alias("happened")]
    elif role.target:
        value = pl.col(role.target).cast(pl.Float64)
    counts = pl.col(TRAIN) if role.refresh == "train" else pl.lit(True)
    return rows.select(ROW_ID, "key", TIME, value.alias("value"), counts.alias("counts"), *more)


def _lookup_parts(work: Work, role: AggregateRole) -> Path:
    return work.stage("lookup") / quote(role.name, safe="")


def _write_lookups(work: Work) -> None:
    """Write what a service looks up: each entity's aggregate as of the end of what counts."""
    for role in work.dataset.aggregates:
        parts = sorted(_lookup_parts(work, role).glob("*.parquet"))
        table = pl.concat([pl.read_parquet(part) for part in parts]).sort("key")
        path = work.output / "lookup" / f"{quote(role.name, safe='')}.parquet"
        with whole_file(path) as partial:
            table.rename({"key": role.of, "value": role.name}).write_parquet(partial)
