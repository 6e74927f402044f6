"""Attribution of one bucket: whose each event is, and what it makes of the labels.

Several events of an impression count once, but values add up. An event counts from the first event
of its impression in the log `after` (or from the impression) up to `attribution_hours` later, both
ends included. Every impression of an id and every event that names it lie in the same bucket.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.dataset.task_roles import EventLabel, TaskRole
from pipelines.rows.row_rules import is_sane
from recsys_moe.errors import SpecError

MICROS_PER_HOUR = 3_600_000_000

_REASON, _PLACE = "reason", "place"
_HAS_VALUE = pl.col("value").is_finite().fill_null(False)


@dataclass(frozen=True, slots=True)
class LogRows:
    """Rows of a log of events.

    `rows` has `row_id`, `id` of the impression, `time` (int64 microseconds; 0 throughout if the log
    has none) and `value` (numbers) if a label adds them up; `join` and `time` are what the log
    calls its columns, for reasons.
    """

    name: str
    join: str
    time: str
    rows: pl.DataFrame


@dataclass(frozen=True, slots=True)
class Attributed:
    """What became of a bucket's impressions and events.

    `labels` has `row_id` and a column `task.column` per task of events: 0 or 1 (int64), or the sum
    of values (float64, null where there are none); null where the impression has no id. `timings`
    has for each such task `row_id`, `time`, `start` and `delay` (microseconds from the start to the
    first event, be it in time or late) as `pipelines.rows.maturity` reads them. Both hold one row
    per impression that is no duplicate, by `row_id`. `bad` has `log`, `row_id` and `reason` of the
    events that are nobody's; `duplicates` the `row_id` of impressions whose id came before.
    """

    labels: pl.DataFrame
    timings: dict[str, pl.DataFrame]
    bad: pl.DataFrame
    duplicates: pl.Series
    counts: dict[str, dict[str, Any]]


def attribute_bucket(
    impressions: pl.DataFrame, logs: Sequence[LogRows], tasks: Sequence[TaskRole], join: str
) -> Attributed:
    """Join the events of one bucket to its impressions.

    Args:
        impressions: `row_id`, `id` (may be null) and `time` (int64 microseconds).
        logs: The events, log by log.
        tasks: All tasks; those without events are passed over.
        join: What the impressions' log calls an id, for reasons.

    Raises:
        SpecError: A label comes after a log that is not there, or after itself.
    """
    labelled = [(task, task.events) for task in tasks if task.events is not None]
    impressions = impressions.select("row_id", "id", "time").sort("row_id")
    is_first = pl.col("id").is_null() | pl.col("id").is_first_distinct()
    shown = impressions.filter(is_first).with_row_index(_PLACE)
    firsts: dict[str, pl.Series] = {}
    labels, timings, bad, counts = {}, {}, {}, {}
    for log in _in_order(logs, labelled):
        own = {task.name: label for task, label in labelled if label.log == log.name}
        starts = {name: firsts[o.after] if o.after else shown["time"] for name, o in own.items()}
        events = _owned(log, shown, join)
        taken = {name: _taken(events, label, starts[name]) for name, label in own.items()}
        events = _judged(events, list(taken.values()))
        bad[log.name] = events.filter(pl.col(_REASON).is_not_null())
        firsts[log.name] = _first(events.filter(pl.col(_REASON).is_null()), shown)
        counts[log.name] = _counted(events)
        for name, label in own.items():
            usable = taken[name].filter(pl.col(_REASON).is_null())
            labels[name] = _label(usable, label, shown)
            delay = (_first(usable, shown) - starts[name]).alias("delay")
            timings[name] = shown.select("row_id", "time", starts[name].alias("start"), delay)
            for what, number in _oddities(usable, label).items():
                counts[log.name].setdefault(what, {})[name] = number
    return Attributed(
        labels=shown.select(
            "row_id", *(labels[task.name].alias(task.column) for task, _ in labelled)
        ),
        timings={task.name: timings[task.name] for task, _ in labelled},
        bad=pl.concat(
            bad[log.name].select(pl.lit(log.name).alias("log"), "row_id", _REASON) for log in logs
        ),
        duplicates=impressions.filter(~is_first)["row_id"],
        counts={log.name: counts[log.name] for log in logs},
    )


def add_counts(total: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts of two buckets together.

    >>> add_counts({"clicks": {"rows_in": 2}}, {"clicks": {"rows_in": 3, "late": {"buy": 1}}})
    {'clicks': {'rows_in': 5, 'late': {'buy': 1}}}
    """
    added = dict(total)
    for name, count in more.items():
        if isinstance(count, Mapping):
            added[name] = add_counts(added.get(name, {}), count)
        else:
            added[name] = added.get(name, 0) + count
    return added


def _in_order(
    logs: Sequence[LogRows], labelled: Sequence[tuple[TaskRole, EventLabel]]
) -> list[LogRows]:
    """Return the logs, each behind those that its labels come after."""
    waiting, ordered = list(logs), list[LogRows]()
    while waiting:
        done = [log.name for log in ordered]
        after = [(task, label) for task, label in labelled if label.after not in (None, *done)]
        blocked = {label.log for _, label in after}
        ready = [log for log in waiting if log.name not in blocked]
        if not ready:
            task, label = after[0]
            path, wanted = f"{task.path}.label.after", "a log that does not lead back to this label"
            raise SpecError(path, wanted=wanted, got=repr(label.after), choices=done)
        ordered += ready
        waiting = [log for log in waiting if log.name in blocked]
    return ordered


def _owned(log: LogRows, shown: pl.DataFrame, join: str) -> pl.DataFrame:
    """Add to each event the place of its impression, or the reason why it has none."""
    events = log.rows.sort("row_id")
    events = events.join(shown.select("id", _PLACE), on="id", how="left", maintain_order="left")
    reasons = {
        f"{log.join}: missing": pl.col("id").is_null(),
        f"{log.time}: missing": pl.col("time").is_null(),
        f"{log.time}: not between 1970 and 2200": ~is_sane("time"),
        f"{join}: no such impression": pl.col(_PLACE).is_null(),
    }
    return events.with_columns(_reason(reasons))


def _reason(reasons: Mapping[str, pl.Expr]) -> pl.Expr:
    """Return the first reason that holds, null if none does."""
    found = (pl.when(holds).then(pl.lit(reason)) for reason, holds in reasons.items())
    return pl.coalesce(*found, pl.lit(None, pl.String)).alias(_REASON)


def _taken(events: pl.DataFrame, label: EventLabel, starts: pl.Series) -> pl.DataFrame:
    """Add whether an event is `late` for a label, and the reason why it cannot take it at all."""
    events = events.with_columns(starts.gather(events[_PLACE]).alias("start"))
    early = pl.col("time") < pl.col("start")
    reasons = {}
    if label.after == "clicks":
        reasons["no click of its impression"] = pl.col("start").is_null()
        reasons["before the first click"] = early
    elif label.after is not None:
        reasons[f"no event of its impression in {label.after}"] = pl.col("start").is_null()
        reasons[f"before its impression's first event in {label.after}"] = early
    elif label.attribution_hours is not None:
        reasons["before its impression"] = early
    late = pl.lit(False)
    if label.attribution_hours is not None:
        window = round(label.attribution_hours * MICROS_PER_HOUR)
        late = pl.col("time") - pl.col("start") > window
    return events.with_columns(
        pl.coalesce(_REASON, _reason(reasons)), late.fill_null(True).alias("late")
    )


def _judged(events: pl.DataFrame, taken: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Give an event the first label's reason against it if no label of its log can take it."""
    if not taken:
        return events
    against = pl.DataFrame([one[_REASON].alias(str(place)) for place, one in enumerate(taken)])
    nobody = pl.all_horizontal(pl.all().is_not_null())
    return events.with_columns(against.select(pl.when(nobody).then("0").alias(_REASON)))


def _first(events: pl.DataFrame, shown: pl.DataFrame) -> pl.Series:
    """Return the time of each impression's first event, null where it has none."""
    first = events.group_by(_PLACE).agg(first=pl.col("time").min())
    return shown.select(_PLACE).join(first, on=_PLACE, how="left", maintain_order="left")["first"]


def _label(usable: pl.DataFrame, label: EventLabel, shown: pl.DataFrame) -> pl.Series:
    """Return the label of each impression: whether it has an event in time, or their sum."""
    in_time = usable.filter(~pl.col("late"))
    if label.value is None:
        made = pl.Series(_counts(in_time, shown) > 0).cast(pl.Int64)
    else:
        in_time = in_time.filter(_HAS_VALUE)
        values = in_time["value"].cast(pl.Float64).to_numpy()
        sums = np.bincount(in_time[_PLACE].to_numpy(), values, len(shown))  # in the log's order
        made = pl.select(
            pl.when(pl.Series(_counts(in_time, shown) > 0)).then(pl.Series(sums))
        ).to_series()
    return shown.select(pl.when(pl.col("id").is_not_null()).then(made)).to_series()


def _counts(events: pl.DataFrame, shown: pl.DataFrame) -> NDArray[np.int64]:
    return np.bincount(events[_PLACE].to_numpy(), minlength=len(shown))


def _counted(events: pl.DataFrame) -> dict[str, Any]:
    """Count the rows of a log, and why some are nobody's."""
    sound = events.filter(pl.col(_REASON).is_null())
    bad = events.drop_nulls(_REASON).group_by(_REASON).len().sort(_REASON)
    reached = sound[_PLACE].n_unique()
    return {
        "rows_in": len(events),
        "rows_quarantined": len(events) - len(sound),
        "quarantine": dict(bad.iter_rows()),
        "impressions": reached,
        "repeated": len(sound) - reached,
    }


def _oddities(usable: pl.DataFrame, label: EventLabel) -> dict[str, int]:
    """Count the events that a label could take but for their time, or that have no value."""
    found = {}
    if label.attribution_hours is not None:
        found["late"] = int(usable["late"].sum())
    if label.value is not None:
        found["without_value"] = len(usable.filter(~_HAS_VALUE))
    return found
