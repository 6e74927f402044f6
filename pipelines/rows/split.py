"""Which split a row belongs to: by its file, a column, a keyed hash or its place in time."""

from collections.abc import Sequence

import polars as pl

from pipelines.dataset.roles import SPLITS, Split
from pipelines.encoding.hashes import murmur32, text_of
from pipelines.logs.logs import FILE_SPLIT
from pipelines.rows.labels import is_one_of
from recsys_moe.spec import Column

_HASHES = 2**32
_MICROS_PER_HOUR = 3_600_000_000


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


def gap_of(split: Split, column: Column | None, starts: Sequence[int] = ()) -> pl.Expr:
    """Say whether a row falls into the gap at the start of valid or test, and so is left out."""
    if not split.gap_hours or column is None:
        return pl.lit(False)
    gap = round(split.gap_hours * _MICROS_PER_HOUR)
    value = pl.col(column.name)
    return pl.any_horizontal((value >= start) & (value < start + gap) for start in starts)
