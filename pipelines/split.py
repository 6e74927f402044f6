"""Which split a row belongs to: by its file, a column, a keyed hash or its place in time."""

from collections.abc import Sequence

import polars as pl

from pipelines.hashes import murmur32, text_of
from pipelines.labels import is_one_of
from pipelines.logs import FILE_SPLIT
from pipelines.roles import SPLITS, Split
from recsys_moe.spec import Column

_HASHES = 2**32
_TIME_STEPS = (2**40, 2**20, 1)


def split_of(split: Split, column: Column | None, starts: Sequence[int] = ()) -> pl.Expr:
    """Return "train", "valid" or "test" for each row, null where the rule names none.

    Args:
        split: The rule.
        column: The column it looks at, unless it is about files.
        starts: For a split by time, the first timestamps of valid and test.
    """
    if split.by == "file":
        return _by_file(split)
    if column is None:
        raise ValueError(f"a split by {split.by} looks at a column")
    value = pl.col(column.name)
    if split.by == "column":
        return pl.coalesce(
            pl.when(is_one_of(value, split.values[name])).then(pl.lit(name)) for name in SPLITS
        )
    if split.by == "hash":
        draw = _draw(split.seed, text_of(value, column.type))
        return _shares(draw, split.valid_share * _HASHES, split.test_share * _HASHES)
    first_valid, first_test = starts
    return (
        pl.when(value < first_valid)
        .then(pl.lit("train"))
        .when(value < first_test)
        .then(pl.lit("valid"))
        .when(value >= first_test)
        .then(pl.lit("test"))
    )


def _by_file(split: Split) -> pl.Expr:
    """Take a row's file at its word, and a seeded share of the train rows for validation."""
    named = pl.col(FILE_SPLIT)
    if not split.valid_share:
        return named
    draw = _draw(split.seed, pl.col("row_id").cast(pl.String))
    drawn = (named == "train") & (draw < split.valid_share * _HASHES)
    return pl.when(drawn).then(pl.lit("valid")).otherwise(named)


def _draw(seed: int, text: pl.Expr) -> pl.Expr:
    """Return a whole number below 2**32 that depends on a seed and a value and nothing else."""
    return murmur32(pl.lit(f"{seed}|") + text)


def _shares(draw: pl.Expr, valid: float, test: float) -> pl.Expr:
    return (
        pl.when(draw < valid)
        .then(pl.lit("valid"))
        .when(draw < valid + test)
        .then(pl.lit("test"))
        .when(draw.is_not_null())
        .then(pl.lit("train"))
    )


def time_starts(rows: pl.LazyFrame, split: Split) -> tuple[int, int]:
    """Return the first timestamps of valid and test, so that the shares are those asked for.

    Rows with the same timestamp stay together, in the later split.
    """
    times = rows.select(time=pl.col(split.column or "")).filter(pl.col("time").is_not_null())
    count = times.select(pl.len()).collect(engine="streaming").item()
    if not count:
        return 0, 0
    num_test, num_valid = round(count * split.test_share), round(count * split.valid_share)
    ranks = count - num_test - num_valid, count - num_test
    first, second = (order_statistic(times, min(rank, count - 1)) for rank in ranks)
    return first, second


def order_statistic(times: pl.LazyFrame, rank: int) -> int:
    """Return the value at a rank (from 0) of the sorted column `time`, without sorting it.

    Histograms of finer and finer steps, each inside the step that holds the rank, need memory for
    the steps that occur and not for the rows.
    """
    step_start = 0
    for step in _TIME_STEPS:
        counts = (
            times.group_by(start=pl.col("time") // step)
            .len()
            .collect(engine="streaming")
            .sort("start")
        )
        below = counts["len"].cast(pl.Int64).cum_sum()
        row = int(below.search_sorted(rank, side="right"))  # first with below > rank
        rank -= int(below[row - 1]) if row else 0
        step_start = int(counts["start"][row])
        times = times.filter(pl.col("time") // step == step_start)
    return step_start
