"""Aggregates: what the days before a row's own say of its entity, as one float32.

All functions hold one bucket in memory: every row of a key lies in the same one. Days are UTC.
Sums run from the first day to the last, and within a day by `row_id`, so that a bucket's other
keys and the number of buckets change no digit.

Shapes: N rows, C rows that count, D pairs of a key and a day on which it has any, Q distinct
questions (of a key, as of a day).
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.dataset.past_roles import AggregateRole
from pipelines.past.histories import MICROS_PER_DAY, Ints

_DAY = pl.col("time") // MICROS_PER_DAY
_IS_KNOWN = pl.col("value").is_finite().fill_null(False)

Doubles = NDArray[np.float64]


def aggregate(rows: pl.DataFrame, role: AggregateRole, prior: float) -> pl.DataFrame:
    """Return for each row what the earlier days say of its key.

    The days that count are those before the row's own day less `lag_days`, the latest
    `window_days` of them. A row's own day never counts, so no label of that day can leak.

    Args:
        rows: `row_id`, `key` (null for nobody), `time` (int64, microseconds UTC), `value`
            (float64; null or not finite where unknown) and `counts`: whether the row itself
            counts for later ones. With `happened` (int64, null where nothing did), a value
            counts from the day it happened and the row of a rate from its own: what a counter
            read at midnight would say, that never knows of a click before it comes.
        role: What to compute.
        prior: The mean that a rate is drawn to.

    Returns:
        `row_id` and `role.name` (float32), by `row_id`. Without a key or a past, a count and a sum
        are 0, a mean is null and a rate is the prior.
    """
    rows = rows.sort("row_id")
    asked = rows.select("key", day=_DAY)
    found = _answers(_Past.of(_entries(rows, role)), asked, role, prior)
    return rows.select("row_id", found["value"].alias(role.name))


def lookup(rows: pl.DataFrame, role: AggregateRole, prior: float, day: int) -> pl.DataFrame:
    """Return what a row of one day would get, for each key with a past by then.

    Args:
        rows: As for `aggregate`.
        role: What to compute.
        prior: The mean that a rate is drawn to.
        day: The asking day, in days since 1970: the last that counts, plus one, so that
            all buckets speak of the same moment.

    Returns:
        `key` and `value` (float32), by `key`. Any other key gets what a row without a past gets.
    """
    past = _Past.of(_entries(rows.sort("row_id"), role))
    asked = past.keys.select(pl.col("key").sort()).with_columns(day=pl.lit(day, pl.Int64))
    found = _answers(past, asked, role, prior)
    return found.filter(pl.col("rows") > 0).select("key", "value")


def _entries(rows: pl.DataFrame, role: AggregateRole) -> pl.DataFrame:
    """Return what is to be added up: rows, or rows and what happened to them, each on its day."""
    rows = rows.with_columns(known=_IS_KNOWN)
    if "happened" not in rows.columns:
        return rows
    happened = rows.filter("known", pl.col("happened").is_not_null())
    happened = happened.with_columns(time=pl.col("happened"))
    if role.kind != "rate":
        return happened
    shown, summed = pl.lit(0.0).alias("value"), pl.lit(False).alias("known")
    return pl.concat([rows.with_columns(shown), happened.with_columns(summed)])


@dataclass(frozen=True, slots=True)
class _Past:
    """What counts, added up by key and day.

    A number stands in for each key of `keys`, in this bucket only. A pair is number * num_days +
    day - first_day, and `pairs` (D,) are sorted; `rows_before` and `known_before` (D + 1,) count
    the rows and the known values of all pairs before one; `sums` (D,) are the values' sums.
    """

    keys: pl.DataFrame
    first_day: int
    num_days: int
    pairs: Ints
    rows_before: Ints
    known_before: Ints
    sums: Doubles

    @classmethod
    def of(cls, rows: pl.DataFrame) -> "_Past":
        """Add up rows in their order."""
        value = pl.when(_IS_KNOWN).then("value").otherwise(0.0)
        rows = rows.filter(_contributes()).select("key", "known", value, day=_DAY)
        keys = rows.select(pl.col("key").unique(maintain_order=True))
        keys = keys.with_columns(number=pl.int_range(pl.len(), dtype=pl.Int64))
        first_day = int(rows["day"].min() or 0)  # type: ignore[arg-type]  # a column of int64
        num_days = int(rows["day"].max() or 0) - first_day + 1  # type: ignore[arg-type]
        number = rows.join(keys, on="key", how="left", maintain_order="left")["number"]
        pair_C = number.to_numpy() * num_days + (rows["day"].to_numpy() - first_day)
        pair_D, place_C = np.unique(pair_C, return_inverse=True)
        known_D = np.bincount(place_C[rows["known"].to_numpy()], minlength=len(pair_D))
        sum_D = np.zeros(len(pair_D))
        np.add.at(sum_D, place_C, rows["value"].to_numpy())  # one row after the other
        return cls(
            keys=keys,
            first_day=first_day,
            num_days=num_days,
            pairs=pair_D,
            rows_before=_cumulative(np.bincount(place_C, minlength=len(pair_D))),
            known_before=_cumulative(known_D),
            sums=sum_D,
        )


def _contributes() -> pl.Expr:
    return pl.col("counts") & pl.col("key").is_not_null() & pl.col("time").is_not_null()


def _cumulative(count_D: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(count_D)])


def _answers(past: _Past, asked: pl.DataFrame, role: AggregateRole, prior: float) -> pl.DataFrame:
    """Return `key`, `rows` and `value` for each `key` asked about as of a `day`, in their order."""
    starts_Q, ends_Q, place_N = _windows(past, asked, role)
    rows_Q = past.rows_before[ends_Q] - past.rows_before[starts_Q]
    if role.kind == "count":
        value_Q = rows_Q.astype(np.float64)
    else:
        value_Q = _sums(past, starts_Q, ends_Q, whole=role.window_days is None)
    if role.kind in ("rate", "mean"):
        known_Q = past.known_before[ends_Q] - past.known_before[starts_Q]
        weight, nothing = (role.prior_weight, prior) if role.kind == "rate" else (0.0, np.nan)
        total_Q = value_Q + weight * prior if role.kind == "rate" else value_Q
        value_Q = np.full(len(known_Q), nothing)
        np.divide(total_Q, known_Q + weight, out=value_Q, where=known_Q > 0)
    value = pl.Series("value", value_Q[place_N]).fill_nan(None).cast(pl.Float32)
    return asked.select("key", pl.Series("rows", rows_Q[place_N]), value)


def _windows(past: _Past, asked: pl.DataFrame, role: AggregateRole) -> tuple[Ints, Ints, Ints]:
    """Return where in the past each distinct question begins and ends, and each row's question.

    A question is numbered like a pair, with days enough for any that a window can look back from.
    """
    num_days = past.num_days + (role.window_days or 0)
    number_D = past.pairs // past.num_days
    day_D = number_D * (num_days + 1) + past.pairs % past.num_days
    asked = asked.join(past.keys, on="key", how="left", maintain_order="left")
    before = (pl.col("day") - role.lag_days - past.first_day).clip(0, num_days).fill_null(0)
    number = pl.col("number").fill_null(len(past.keys))  # after all others: nothing is its past
    question_N = asked.select(number * (num_days + 1) + before).to_series().to_numpy()
    question_Q, place_N = np.unique(question_N, return_inverse=True)
    number_Q, before_Q = np.divmod(question_Q, num_days + 1)
    first_Q = np.zeros_like(before_Q)
    if role.window_days is not None:
        first_Q = np.maximum(before_Q - role.window_days, 0)
    starts_Q = np.searchsorted(day_D, number_Q * (num_days + 1) + first_Q)
    return starts_Q, np.searchsorted(day_D, question_Q), place_N


def _sums(past: _Past, starts_Q: Ints, ends_Q: Ints, *, whole: bool) -> Doubles:
    """Add up the days from each start to its end, one day after the other.

    Differences of running sums would be quicker, and would carry the rounding of what lies before
    a window into it.
    """
    sum_Q = np.zeros(len(starts_Q))
    if whole:
        running = pl.col("sum").cum_sum().over(pl.col("pair") // past.num_days)
        frame = pl.DataFrame({"pair": past.pairs, "sum": past.sums})
        running_D = frame.select(running).to_series().to_numpy()
        has_past_Q = ends_Q > starts_Q
        sum_Q[has_past_Q] = running_D[ends_Q[has_past_Q] - 1]
        return sum_Q
    place_Q = np.flatnonzero(ends_Q > starts_Q)
    step = 0
    while len(place_Q):
        sum_Q[place_Q] += past.sums[starts_Q[place_Q] + step]
        step += 1
        place_Q = place_Q[starts_Q[place_Q] + step < ends_Q[place_Q]]
    return sum_Q
