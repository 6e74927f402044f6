"""Raw columns -> the arrays that the graph takes, with the missing marker where nothing is.

A scalar column `x` becomes the array `x` [rows], a vector `x` [rows, dim]; a list column becomes
`x_ids` [rows, longest] and `x_len` int64 [rows]. Strings travel as objects: numpy's own string
types lose NUL bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from export.columns import vectors
from export.faults import Faults, Reason
from recsys_moe.errors import RequestError, did_you_mean
from recsys_moe.expression import lists_of, parse
from recsys_moe.spec import (
    INT64_MISSING,
    Bucketized,
    Categorical,
    Column,
    FeatureSpec,
    Numeric,
)

Array = npt.NDArray[Any]

_WANTED = {
    "string": "strings or categories",
    "int64": "integers, booleans, dates or times",
    "float32": "floats, decimals or integers",
}
_NUMPY: dict[str, tuple[Any, Any]] = {
    "string": (object, ""),
    "int64": (np.int64, INT64_MISSING),
    "float32": (np.float32, np.float32("nan")),
}


@dataclass(frozen=True, slots=True)
class Input:
    """A raw column of the graph; of a list no more than its first and last elements are read.

    `kept` says how many of each; `allow_inf`, that a feature gives infinite numbers a meaning.
    """

    column: Column
    kept: tuple[int, int] | None = None
    allow_inf: bool = False

    @property
    def name(self) -> str:
        """The column's name."""
        return self.column.name

    @property
    def wanted(self) -> str:
        """What the column should hold, in words."""
        if self.column.dim is not None:
            return f"vectors of {self.column.dim} numbers"
        return ("lists of " if self.column.is_list else "") + _WANTED[self.column.type]


def graph_inputs(columns: Sequence[Column], spec: FeatureSpec) -> tuple[Input, ...]:
    """Pair an artifact's input columns with what features read of each."""
    kept: dict[str, tuple[int, int]] = {}
    infinite, counted = set(), set()
    for feature in spec.features:
        if isinstance(feature, Categorical) and feature.max_len is not None:
            first, last = kept.get(feature.column, (0, 0))
            if feature.keep == "last":
                kept[feature.column] = first, max(last, feature.max_len)
            else:
                kept[feature.column] = max(first, feature.max_len), last
        elif isinstance(feature, Bucketized) and feature.allow_inf:
            infinite |= set(feature.columns)
        if isinstance(feature, Numeric | Bucketized) and feature.expression is not None:
            counted |= set(lists_of(parse(feature.expression)))
    for name in counted:
        kept.pop(name, None)  # the length that counts is the whole list's
    return tuple(Input(c, kept.get(c.name), c.name in infinite) for c in columns)


def missing_column(where: str, name: str, wanted: str, present: Sequence[str]) -> RequestError:
    """Build the error for a column that is not there, with the nearest that is."""
    error = RequestError(f"{where}, column {name!r}", wanted=wanted, got="no such column")
    error.args = (str(error) + did_you_mean(name, present),)
    return error


def check_columns(schema: Mapping[str, pl.DataType], inputs: Sequence[Input], where: str) -> None:
    """Refuse an input that lacks a column or has one of the wrong type.

    Raises:
        RequestError: With the column, the type it wants and the one that came.
    """
    for item in inputs:
        dtype = schema.get(item.name)
        if dtype is None:
            raise missing_column(where, item.name, item.wanted, list(schema))
        if not _accepts(item.column, dtype):
            raise RequestError(f"{where}, column {item.name!r}", wanted=item.wanted, got=str(dtype))


def build_feeds(frame: pl.DataFrame, inputs: Sequence[Input], faults: Faults) -> dict[str, Array]:
    """Return the arrays of a checked frame; rows with a value that has no place get a fault.

    In such a row the marker stands for the value, so that the arrays can be run as they are.
    """
    feeds: dict[str, Array] = {}
    for item in inputs:
        series = frame[item.name]
        if item.column.dim is not None:
            feeds[item.name] = _vectors(series, item.column.dim, faults)
        elif item.column.is_list:
            ids, lengths = _lists(series, item, faults)
            feeds |= {f"{item.name}_ids": ids, f"{item.name}_len": lengths}
        else:
            values, bad = _values(series, item.column.type, allow_inf=item.allow_inf)
            feeds[item.name] = values
            _note(item, bad, np.flatnonzero(bad), faults)
    return feeds


def _accepts(column: Column, dtype: pl.DataType) -> bool:
    if dtype == pl.Null:
        return True
    if column.is_list or column.dim:
        if not isinstance(dtype, pl.List | pl.Array):
            return False
        if column.dim and isinstance(dtype, pl.Array) and dtype.size != column.dim:
            return False
        inner = dtype.inner
        return isinstance(inner, pl.DataType) and _accepts(Column(name="", type=column.type), inner)
    if column.type == "string":
        return isinstance(dtype, pl.String | pl.Categorical | pl.Enum)
    if column.type == "int64":
        times = isinstance(dtype, pl.Date | pl.Datetime | pl.Time)
        return dtype.is_integer() or dtype == pl.Boolean or times
    return dtype.is_float() or dtype.is_decimal() or dtype.is_integer()


def _values(
    series: pl.Series, kind: str, *, allow_inf: bool = False
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return a column's values, markers where it is null, and where a value has no place."""
    if kind == "string":
        texts = series.cast(pl.String).fill_null("").to_numpy()
        return texts.astype(object, copy=False), np.zeros(len(series), bool)
    if kind == "float32":
        numbers = series.cast(pl.Float32).fill_null(float("nan")).to_numpy().copy()
        bad = np.isinf(numbers) & (not allow_inf)
        numbers[bad] = np.nan
        return numbers, bad
    integers = _microseconds(series).cast(pl.Int64, strict=False)
    bad = (integers.is_null() & series.is_not_null()).to_numpy()
    return integers.fill_null(INT64_MISSING).to_numpy(), bad


def _microseconds(series: pl.Series) -> pl.Series:
    """Turn dates and times into integers, microseconds UTC; leave other types alone."""
    if isinstance(series.dtype, pl.Date):
        series = series.cast(pl.Datetime("us"))
    if isinstance(series.dtype, pl.Datetime):
        return series.dt.cast_time_unit("us").to_physical()
    if isinstance(series.dtype, pl.Time):
        return series.to_physical() // 1000
    return series


def _lists(series: pl.Series, item: Input, faults: Faults) -> tuple[Array, Array]:
    """Return a list column as a padded matrix and the length of each row; a null list is empty."""
    kind, (dtype, marker) = item.column.type, _NUMPY[item.column.type]
    if series.dtype == pl.Null:
        lengths = np.zeros(len(series), np.int64)
        flat = pl.Series([], dtype=pl.Null)
    else:
        lists = series.arr.to_list() if isinstance(series.dtype, pl.Array) else series
        lists = lists if item.kept is None else _cut(lists, *item.kept)
        lengths = lists.list.len().fill_null(0).cast(pl.Int64).to_numpy()
        flat = lists.filter(pl.Series(lengths > 0)).explode()
    width = max(1, int(lengths.max(initial=0)))
    ids = np.full((len(series), width), marker, dtype)
    values, bad = _values(flat, kind)
    ids[np.arange(width) < lengths[:, None]] = values
    _note(item, bad, np.repeat(np.arange(len(series)), lengths)[bad], faults)
    return ids, lengths


def _cut(lists: pl.Series, first: int, last: int) -> pl.Series:
    """Return lists without the elements between their first and last ones."""
    if not last:
        return lists.list.head(first)
    if not first:
        return lists.list.tail(last)
    ends = pl.concat_list(pl.lit(lists).list.head(first), pl.lit(lists).list.tail(last))
    is_long = pl.lit(lists).list.len() > first + last
    return pl.select(pl.when(is_long).then(ends).otherwise(pl.lit(lists))).to_series()


def _vectors(series: pl.Series, dim: int, faults: Faults) -> Array:
    """Return a vector column as a matrix, NaN in the whole row of one that is missing or bad."""
    lists = series.arr.to_list() if isinstance(series.dtype, pl.Array) else series
    cells, misfits = vectors(lists.cast(pl.List(pl.Float32)), dim)
    infinite = np.isinf(cells).any(axis=1)
    if infinite.any():
        faults.add(Reason.INFINITE_NUMBER, np.flatnonzero(infinite), series.name)
    cells[~np.isfinite(cells).all(axis=1)] = np.nan
    if misfits.any():
        reason = f"vector {series.name}: wanted {dim} numbers"
        faults.add(Reason.VECTOR_LENGTH, np.flatnonzero(misfits), reason)
    return cells


def _note(item: Input, bad: npt.NDArray[np.bool_], rows: Array, faults: Faults) -> None:
    if bad.any():
        numbers = item.column.type == "float32"
        reason = Reason.INFINITE_NUMBER if numbers else Reason.INTEGER_OUT_OF_RANGE
        faults.add(reason, rows, item.name)
