"""Histories: the last events of a user, strictly before an impression, newest first.

All functions hold one bucket in memory: every row and every event of a key lies in the same one.
Keys are raw values. An encoded key would give all rare users one history between them.

Shapes: N rows, E events, K keys and one for none, V elements of all lists together.
"""

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.dataset.past_roles import HistoryRole

MICROS_PER_SECOND = 1_000_000
MICROS_PER_DAY = 86_400 * MICROS_PER_SECOND
_ORDER = ("key", "time", "row_id")

Ints = NDArray[np.int64]


def history(rows: pl.DataFrame, events: pl.DataFrame, role: HistoryRole) -> pl.DataFrame:
    """Return for each row the last events of its key before it, newest first.

    An event counts for a row if its time is less than the row's time minus the lag: an event of the
    same moment is not of the past. Events of one moment stand by their impression, the later
    `row_id` first. What `capped` leaves out is left out here. Rows are independent of each other,
    so a large bucket may come in slices, with all of its events each time.

    Args:
        rows: `row_id`, `key` (string or int64, null for nobody) and `time` (int64, microseconds).
        events: `key`, `time`, `row_id` of the impression, and the columns of the role, each under
            its own name.
        role: What to collect.

    Returns:
        `row_id` and one list column for each of `role.outputs`, by `row_id`; a row without a key,
        without a time or without a past has empty lists, and a null in an event stays a null.
    """
    rows = rows.select("row_id", "key", "time").sort("row_id")
    past, _ = capped(events, role)
    starts_N, ends_N = _windows(rows, past, round(role.lag_seconds * MICROS_PER_SECOND))
    lengths_N = np.minimum(ends_N - starts_N, role.last)
    offsets_N1 = np.concatenate([[0], np.cumsum(lengths_N)])
    newest_V = np.repeat(ends_N - 1 + offsets_N1[:-1], lengths_N)
    picked_V = pl.Series((newest_V - np.arange(len(newest_V))).astype(np.uint32))
    del newest_V
    lists = [
        _lists(past[column].gather(picked_V), offsets_N1).alias(output)
        for column, output in zip(role.columns, role.outputs, strict=True)
    ]
    return rows.select("row_id", *lists)


def capped(events: pl.DataFrame, role: HistoryRole) -> tuple[pl.DataFrame, int]:
    """Return the events that count, by key, time and impression, and how many are too many.

    Of each key and day (UTC) the first `role.max_per_day` count, so that a robot's day fills no
    history and whether an event counts never depends on a later one. Events without a key or a
    time are nobody's: they are gone, and not in the number.
    """
    past = events.drop_nulls(["key", "time"]).sort(_ORDER, maintain_order=True)
    if past.is_empty():
        return past, 0
    day = pl.col("time") // MICROS_PER_DAY
    first = past.select((pl.col("key").ne_missing(pl.col("key").shift())) | (day != day.shift()))
    first_E = first.to_series().fill_null(True).to_numpy()
    place_E = np.arange(len(past))
    counts_E = place_E - np.maximum.accumulate(np.where(first_E, place_E, 0)) < role.max_per_day
    kept = past.filter(pl.Series(counts_E))
    return kept, len(past) - len(kept)


def _windows(rows: pl.DataFrame, past: pl.DataFrame, lag: int) -> tuple[Ints, Ints]:
    """Return where in the sorted events the past of each row begins and ends.

    Numbers stand in for keys and moments here, in this bucket only: two events of one number have
    the very same key, and a key without events has none.
    """
    is_first = pl.col("key").ne_missing(pl.col("key").shift())
    numbered = past.select("key", number=is_first.cast(pl.Int64).cum_sum())
    keys = numbered.unique("key", keep="any")
    number = (
        rows.join(keys, on="key", how="left", maintain_order="left")
        .select(pl.when(pl.col("time").is_not_null()).then(pl.col("number")).fill_null(0))
        .to_series()
    )
    moments = np.unique(past["time"].to_numpy())
    base = len(moments) + 1
    past_E = numbered["number"].to_numpy() * base + np.searchsorted(
        moments, past["time"].to_numpy()
    )
    number_N = number.to_numpy()
    before_N = np.searchsorted(moments, rows["time"].fill_null(0).to_numpy() - lag)
    starts_K = np.searchsorted(past_E, np.arange(len(keys) + 1) * base)
    return starts_K[number_N], np.searchsorted(past_E, number_N * base + before_N)


def _lists(values: pl.Series, offsets_N1: Ints) -> pl.Series:
    """Cut values into lists where the offsets say."""
    elements = values.to_arrow(compat_level=pl.CompatLevel.newest())
    lists = pa.LargeListArray.from_arrays(pa.array(offsets_N1), elements)
    return pl.Series(lists, dtype=pl.List(values.dtype))
