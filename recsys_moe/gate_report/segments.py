"""Cut any column of `prepared/` into a few segments that have names.

Shapes: N rows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys_moe.errors import RequestError
from recsys_moe.spec import Bucketized, FeatureSpec, Numeric

MOST_VALUES = 20
OTHERS, MISSING = "others", "missing"
_DECILES = [n / 10 for n in range(1, 10)]


@dataclass(frozen=True, slots=True)
class Segments:
    """The segments of one column: its values, or intervals `(a, b]`, then others and missing.

    Attributes:
        column: The column's name.
        names: What the segments are called, in order; the last but one is "others" where there
            are more values, the last one "missing".
        values: The values that have a segment, as text; empty where the column is cut.
        edges: Where it is cut; None where values are segments.
    """

    column: str
    names: tuple[str, ...]
    values: tuple[str, ...] = ()
    edges: tuple[float, ...] | None = None

    def codes(self, series: pl.Series) -> NDArray[np.int64]:
        """Return the number of each row's segment, (N,)."""
        series, missing = _plain(series), len(self.names) - 1
        if self.edges is not None:
            numbers = _numbers(series)
            places = np.searchsorted(np.asarray(self.edges), numbers, side="left")
            return np.where(np.isnan(numbers), missing, places).astype(np.int64)
        known = dict(zip(self.values, range(len(self.values)), strict=True))
        texts = series.cast(pl.String)
        found = texts.replace_strict(known, default=missing - 1, return_dtype=pl.Int64)
        return np.where(series.is_null().to_numpy(), missing, found.fill_null(missing).to_numpy())


def fit(frame: pl.LazyFrame, column: str, *, cut: bool) -> Segments:
    """Choose the segments of a column.

    Args:
        frame: Rows with the column.
        column: Its name.
        cut: Whether a whole number with more than 20 values is cut into deciles, as floats and
            times are; else, as of any other column, its 20 most frequent values are segments. A
            list counts as its length.

    Raises:
        RequestError: The column holds vectors or records.
    """
    series = _plain(frame.select(pl.col(column)).collect()[column])
    if isinstance(series.dtype, pl.Array | pl.Struct | pl.Object):
        raise RequestError(
            f"segments, {column}", wanted="a column of values or lists", got=f"{series.dtype}"
        )
    number = series.dtype.is_numeric() or series.dtype.is_temporal()
    few = series.n_unique() <= MOST_VALUES + 1
    if number and not few and (cut or series.dtype.is_float() or series.dtype.is_temporal()):
        return _cut(column, series)
    counts = series.drop_nulls().value_counts().sort(["count", column], descending=[True, False])
    kept = counts.head(MOST_VALUES)[column]
    kept = kept.sort() if number and few else kept
    values = tuple(kept.cast(pl.String).to_list())
    return Segments(column, (*values, OTHERS, MISSING), values)


def _cut(column: str, series: pl.Series) -> Segments:
    numbers = _numbers(series)
    numbers = numbers[np.isfinite(numbers)]
    cuts = np.quantile(numbers, _DECILES, method="lower") if len(numbers) else np.empty(0)
    edges = [float(edge) for edge in np.unique(cuts) if edge < numbers.max()]
    texts = _texts(edges, series.dtype)
    names = [f"{a} to {b}" for a, b in pairwise(texts)]
    names = [f"up to {texts[0]}", *names, f"above {texts[-1]}"] if edges else ["any"]
    return Segments(column, (*names, MISSING), edges=tuple(edges))


def _texts(edges: Sequence[float], dtype: pl.DataType) -> list[str]:
    if dtype.is_temporal():
        series = pl.Series(edges, dtype=pl.Float64).cast(pl.Int64).cast(dtype)
        return [str(edge) for edge in series.to_list()]
    digits = 3
    while len({f"{edge:.{digits}g}" for edge in edges}) < len(edges) and digits < 17:
        digits += 1
    return [
        f"{edge:,.0f}" if edge.is_integer() and abs(edge) < 1e15 else f"{edge:.{digits}g}"
        for edge in edges
    ]


def _plain(series: pl.Series) -> pl.Series:
    """Return a list column as its lengths, and numbers with NaN as null."""
    if isinstance(series.dtype, pl.List):
        return series.list.len()
    return series.fill_nan(None) if series.dtype.is_float() else series


def _numbers(series: pl.Series) -> NDArray[np.float64]:
    numbers = series.to_physical().cast(pl.Float64).fill_null(math.nan)
    return numbers.to_numpy()


class Prepared:
    """The raw columns of one split, read a batch at a time."""

    def __init__(self, features: Path, split: str) -> None:
        self.files = sorted((features / "prepared" / split).glob("*.parquet"))
        if not self.files:
            folder = features / "prepared" / split
            raise RequestError(f"{folder}", wanted="parquet files", got="none")
        self.schema = pl.read_parquet_schema(self.files[0])
        self.split = split

    def segments(self, asked: Sequence[str], spec: FeatureSpec) -> tuple[Segments, ...]:
        """Return the segments of the columns asked for, then those of all other scalar inputs.

        Raises:
            RequestError: A column is asked for that is not there, or holds vectors.
        """
        for column in asked:
            if column not in self.schema:
                wanted = f"columns of prepared/{self.split}"
                raise RequestError("segments", wanted=wanted, got=repr(column), choices=self.schema)
        inputs = [c.name for c in spec.columns if not c.is_list and c.dim is None]
        whole = pl.scan_parquet(self.files)
        numbers, read = _roles(spec)
        return tuple(
            fit(whole, column, cut=column in numbers or column not in read)
            for column in dict.fromkeys([*asked, *inputs])
        )

    def batches(
        self, segments: Sequence[Segments], most: int
    ) -> Iterator[tuple[int, list[NDArray[np.int64]]]]:
        """Yield up to `most` rows at a time: how many, and each column's segment numbers, (N,)."""
        columns = [entry.column for entry in segments]
        for path in self.files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=most, columns=columns):
                    frame = pl.DataFrame(batch)
                    yield (
                        batch.num_rows,
                        [entry.codes(frame[entry.column]) for entry in segments],
                    )


def _roles(spec: FeatureSpec) -> tuple[set[str], set[str]]:
    """Return the columns that some feature reads as a number, and those read in any way."""
    numbers, read = set(), set()
    for feature in spec.features:
        read |= set(feature.columns)
        if isinstance(feature, Bucketized | Numeric):
            numbers |= set(feature.columns)
    return numbers, read
