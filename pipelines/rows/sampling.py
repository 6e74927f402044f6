"""Negatives of one task thinned out in train, and how much those that are kept count.

Whether a row is kept follows from its key alone: not from its place, the number of threads or the
files it came in.
"""

from collections.abc import Iterable

import polars as pl

from pipelines.dataset.roles import Sampling
from pipelines.encoding.hashes import murmur32

_HASHES = 2**32
_SEPARATOR, _MISSING = "\x1f", "\x00null"


def kept(sampling: Sampling, label: pl.Expr, keys: Iterable[str]) -> pl.Expr:
    """Return whether a train row is kept: all but negatives are, and of these `keep_rate`.

    A row is a negative if its label is known and 0. It is kept if MurmurHash3 of
    `<seed>|<key>` is below keep_rate x 2^32.

    Args:
        sampling: What the dataset file says.
        label: The label of the task, null where it is unknown.
        keys: The columns that identify a row, integers or strings; the parts of a key of several
            are joined by U+001F.
    """
    parts = [pl.col(key).cast(pl.String).fill_null(_MISSING) for key in keys]
    key = pl.concat_str(parts, separator=_SEPARATOR)
    text = pl.concat_str([pl.lit(f"{sampling.seed}|"), key])
    drawn = murmur32(text) < round(sampling.keep_rate * _HASHES)
    return ~is_negative(label) | drawn


def sampling_weight(sampling: Sampling, label: pl.Expr) -> pl.Expr:
    """Return how much a kept train row counts, float32: 1 / keep_rate for a negative.

    Wherever a shift of the logit undoes the sampling, every row counts 1. The weight belongs to
    the labels of the tasks in the space of all, each of them: to those in another task's space it
    comes through the tasks above, whose weights multiply.
    """
    rate = sampling.keep_rate if sampling.correct == "weight" else 1.0
    weight = pl.when(is_negative(label)).then(1.0 / rate).otherwise(1.0)
    return weight.cast(pl.Float32)


def is_negative(label: pl.Expr) -> pl.Expr:
    """Return whether a label is known and 0; never null."""
    return (label == 0).fill_null(False)
