"""Vocabularies: fitted on the train split, kept as parquet, looked up without joins.

Shapes: N values, V values of the vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.encoding.hashes import xxhash64
from pipelines.fitting.growth import grow_vocabulary
from pipelines.plans import collect
from recsys_moe.files import whole_file
from recsys_moe.spec import Column

_SEEDS = range(16)


class Vocabulary:
    """Distinct values, string or int64, in the order of their codes.

    A look-up is a binary search, on the integer or on a 64-bit hash that is then compared with
    the value itself: memory of 12 bytes a value beside the values, no join that could reorder
    rows, and no hash table rebuilt for each batch, as a cast to an Enum of a million values is.
    """

    def __init__(self, values: pl.Series) -> None:
        self.values = values
        for seed in _SEEDS:
            self._seed = seed
            keys_V = self._keys(values)
            self._order_V = np.argsort(keys_V, kind="stable").astype(np.int32)
            self._sorted_V = keys_V[self._order_V]
            if not (self._sorted_V[1:] == self._sorted_V[:-1]).any():
                return
        raise ValueError("the values of a vocabulary must be distinct")

    def positions(self, values: pl.Series) -> npt.NDArray[np.int64]:
        """Return the place of each value, -1 for null and for one that is not listed, (N,)."""
        if not len(self.values) or values.null_count() == len(values):
            return np.full(len(values), -1, np.int64)
        encoded = values.to_arrow(compat_level=pl.CompatLevel.oldest()).dictionary_encode()
        found_D = self._found(pl.Series(encoded.dictionary))
        places_N: npt.NDArray[np.int64] = encoded.indices.fill_null(len(found_D)).to_numpy()
        return np.append(found_D, -1)[places_N]

    def _found(self, distinct: pl.Series) -> npt.NDArray[np.int64]:
        """Return the place of each of some values without nulls, -1 for one not listed."""
        found = np.searchsorted(self._sorted_V, self._keys(distinct))
        place = self._order_V[np.minimum(found, len(self._order_V) - 1)]
        same = (self.values.gather(place) == distinct).to_numpy()
        return np.where(same, place, -1)

    def _keys(self, values: pl.Series) -> npt.NDArray[np.int64] | npt.NDArray[np.uint64]:
        if values.dtype == pl.Int64:
            return values.to_numpy()
        hashed = values.to_frame("value").select(xxhash64(pl.col("value"), self._seed))
        return hashed.to_series().cast(pl.UInt64).to_numpy()


def vocabulary_file(table: str) -> str:
    """Return where a table's vocabulary lies, relative to the feature spec."""
    return f"vocab/{quote(table, safe='')}.parquet"


def fit_vocabulary(
    rows: pl.LazyFrame,
    columns: Sequence[Column],
    *,
    min_frequency: int,
    max_size: int | None,
    first_code: int,
    old: pl.Series | None = None,
) -> pl.DataFrame:
    """Count the values of columns together and give the frequent ones their codes.

    Args:
        rows: The rows to fit on: those of the train split and no others.
        columns: Columns of one type; of a list, each element that is not null counts.
        min_frequency: How often a value must occur.
        max_size: How many values to keep at most, the most frequent ones.
        first_code: The code of the most frequent value.
        old: Values that keep their places, before all others.

    Returns:
        Columns value, count and code, by count descending, then value ascending.
    """
    streams = []
    for column in columns:
        values = rows.select(value=pl.col(column.name))
        if column.is_list:
            values = values.explode("value", empty_as_null=False, keep_nulls=False)
        streams.append(values.filter(pl.col("value").is_not_null()))
    every = pl.concat(streams).group_by("value").agg(count=pl.len().cast(pl.Int64))
    if old is not None:
        return grow_vocabulary(
            every, old, min_frequency=min_frequency, max_size=max_size, first_code=first_code
        )
    counts = collect(every.filter(pl.col("count") >= min_frequency)).sort(
        "count", "value", descending=[True, False]
    )
    if max_size is not None:
        counts = counts.head(max_size)
    codes = pl.int_range(first_code, first_code + len(counts), dtype=pl.Int64, eager=True)
    return counts.with_columns(code=codes)


def write_vocabulary(path: Path, vocabulary: pl.DataFrame) -> None:
    """Write a vocabulary whole."""
    with whole_file(path) as partial:
        vocabulary.write_parquet(partial, compression="zstd")


def read_vocabulary(path: Path) -> Vocabulary:
    """Read the values of a vocabulary file, in the order of their codes."""
    return Vocabulary(pl.read_parquet(path, columns=["value"])["value"])
