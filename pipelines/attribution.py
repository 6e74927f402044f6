"""Clicks and conversions to labels: which impressions were clicked, and converted in time.

Several clicks or conversions of one impression count once. A conversion counts from the first
click of its impression up to `attribution_hours` later, both ends included.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.logs import LogFile, readable, scan_logs
from pipelines.prepare import check_quarantine, quarantine_reasons, write_quarantine
from pipelines.roles import Dataset, EventLog
from recsys_moe.spec import Column

_MICROS_PER_HOUR = 3_600_000_000
_ID, _TIME, _FIRST, _REASON = "id", "time", "first", "reason"


@dataclass(frozen=True, slots=True)
class Events:
    """A log of clicks or conversions, opened: its files and the types of its columns."""

    log: EventLog
    files: list[LogFile]
    columns: dict[str, Column]

    def scan(self) -> pl.LazyFrame:
        """Return its rows in order, with their number and as they came."""
        return scan_logs(self.log.source, self.files, self.columns)

    def read(self) -> pl.DataFrame:
        """Return number, impression and, if it matters, time of each of its rows."""
        time = pl.col(self.log.time) if self.log.time in self.columns else pl.lit(0)
        frame = self.scan().select("row_id", pl.col(self.log.join).alias(_ID), time.alias(_TIME))
        with readable(f"source.{self.log.name}", self.log.source.format):
            return frame.collect(engine="streaming")


@dataclass(frozen=True, slots=True)
class Attribution:
    """Labels of the impressions that have any, by the join column, and what became of each log."""

    labels: pl.DataFrame
    report: dict[str, dict[str, Any]]


def attribute(
    dataset: Dataset,
    impressions: pl.LazyFrame,
    events: list[Events],
    output: Path,
    max_quarantine_share: float,
) -> Attribution:
    """Join the logs of events to the impressions.

    Memory grows with the events; the impressions are streamed. Events that cannot be an
    impression's are written to `quarantine/<log>/` with their reason.

    Args:
        dataset: What the dataset file says.
        impressions: Their rows, with the join column.
        events: The log of clicks, and that of conversions if there is one.
        output: The folder to write quarantines in.
        max_quarantine_share: The share of a log above which unusable events are an error.

    Raises:
        RequestError: A log cannot be read.
        DataError: Too much of a log cannot be used.
    """
    frames = {event.log.name: event.read() for event in events}
    join = dataset.source.join or ""
    known = _known(impressions, join, list(frames.values()))
    logs = {event.log.name: event.log for event in events}
    clicks = _judged(frames["clicks"], logs["clicks"], known, join)
    first = _sound(clicks).group_by(_ID).agg(pl.col(_TIME).min().alias(_FIRST)).sort(_ID)
    judged = {"clicks": clicks}
    if "conversions" in frames:
        judged["conversions"] = _judged(
            frames["conversions"], logs["conversions"], known, join, first
        )
    report: dict[str, dict[str, Any]] = {}
    for event in events:
        name, folder = event.log.name, output / "quarantine" / event.log.name
        bad = judged[name].filter(pl.col(_REASON).is_not_null()).select("row_id", _REASON)
        rows = event.scan().join(bad.lazy(), on="row_id", how="inner", maintain_order="left")
        write_quarantine(rows, pl.col(_REASON), folder)
        reasons, rows_in = quarantine_reasons(folder), len(judged[name])
        sound = _sound(judged[name])
        report[name] = {
            "rows_in": rows_in,
            "rows_quarantined": sum(reasons.values()),
            "quarantine": reasons,
            "impressions": sound[_ID].n_unique(),
            "repeated": len(sound) - sound[_ID].n_unique(),
        }
        what = f"dataset {dataset.name!r}: wanted at most {max_quarantine_share:.2%} of the {name}"
        check_quarantine(what, reasons, rows_in, max_quarantine_share, folder)
    labels = first.select(_ID)
    for task in dataset.tasks:
        if task.events is None:
            continue
        positive = first
        if task.events.attribution_hours is not None:
            window = round(task.events.attribution_hours * _MICROS_PER_HOUR)
            sound = _sound(judged["conversions"])
            in_time = pl.col(_TIME) - pl.col(_FIRST) <= window
            positive = sound.filter(in_time).unique(_ID)
            late = int(sound.select((~in_time).sum()).item())
            report["conversions"].setdefault("late", {})[task.name] = late
        one = pl.lit(1, pl.Int64).alias(task.column)
        labels = labels.join(positive.select(_ID, one), on=_ID, how="left", maintain_order="left")
    return Attribution(labels.fill_null(0).rename({_ID: join}), report)


def _known(impressions: pl.LazyFrame, join: str, frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Return, each once, the impressions that exist among those that events name."""
    named = pl.concat([frame.select(_ID) for frame in frames]).drop_nulls().unique()
    ids = impressions.select(pl.col(join).alias(_ID))
    return ids.join(named.lazy(), on=_ID, how="semi").unique().collect(engine="streaming")


def _judged(
    events: pl.DataFrame,
    log: EventLog,
    known: pl.DataFrame,
    join: str,
    first: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Add the reason why an event is nobody's, null where it is an impression's.

    Args:
        events: Number, impression and time of each event.
        log: Their log.
        known: The impressions that exist.
        join: What the impressions' log calls one.
        first: The first click of each clicked impression, which conversions must follow.
    """
    is_known = known.with_columns(known=pl.lit(True))
    events = events.join(is_known, on=_ID, how="left", maintain_order="left")
    rules = {
        f"{log.join}: missing": pl.col(_ID).is_null(),
        f"{log.time}: missing": pl.col(_TIME).is_null(),
        f"{join}: no such impression": pl.col("known").is_null(),
    }
    if first is not None:
        events = events.join(first, on=_ID, how="left", maintain_order="left")
        rules["no click of its impression"] = pl.col(_FIRST).is_null()
        rules["before the first click"] = pl.col(_TIME) < pl.col(_FIRST)
    reasons = [pl.when(wrong).then(pl.lit(reason)) for reason, wrong in rules.items()]
    return events.with_columns(pl.coalesce(reasons).alias(_REASON)).drop("known")


def _sound(events: pl.DataFrame) -> pl.DataFrame:
    return events.filter(pl.col(_REASON).is_null())
