"""Raw columns -> the arrays that the graph takes, with the missing marker where nothing is.

A scalar column `x` becomes the array `x` [rows]; a list column becomes `x_ids` [rows, longest] and
`x_len` int64 [rows]. Strings travel as objects: numpy's own string types lose NUL bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from export.faults import Faults, Reason
from recsys_moe.errors import RequestError, did_you_mean
from recsys_moe.spec import INT64_MISSING, Categorical, Column, FeatureSpec

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
    """A raw column of the graph; of a list the graph reads no more than `max_len` elements."""

    column: Column
    max_len: int | None = None

    @property
    def name(self) -> str:
        """The column's name."""
        return self.column.name


def graph_inputs(columns: Sequence[Column], spec: FeatureSpec) -> tuple[Input, ...]:
    """Pair an artifact's input columns with the most elements that a feature reads of each list."""
    longest: dict[str, int] = {}
    for feature in spec.features:
        if isinstance(feature, Categorical) and feature.max_len is not None:
            longest[feature.column] = max(longest.get(feature.column, 0), feature.max_len)
    return tuple(Input(column, longest.get(column.name)) for column in columns)


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
        wanted = ("lists of " if item.column.is_list else "") + _WANTED[item.column.type]
        dtype = schema.get(item.name)
        if dtype is None:
            raise missing_column(where, item.name, wanted, list(schema))
        if not _accepts(item.column, dtype):
            raise RequestError(f"{where}, column {item.name!r}", wanted=wanted, got=str(dtype))


def build_feeds(frame: pl.DataFrame, inputs: Sequence[Input], faults: Faults) -> dict[str, Array]:
    """Return the arrays of a checked frame; rows with a value that has no place get a fault.

    In such a row the marker stands for the value, so that the arrays can be run as they are.
    """
    feeds: dict[str, Array] = {}
    for item in inputs:
        series = frame[item.name]
        if item.column.is_list:
            ids, lengths = _lists(series, item, faults)
            feeds |= {f"{item.name}_ids": ids, f"{item.name}_len": lengths}
        else:
            values, bad = _values(series, item.column.type)
            feeds[item.name] = values
            _note(item, bad, np.flatnonzero(bad), faults)
    return feeds


def _accepts(column: Column, dtype: pl.DataType) -> bool:
    if dtype == pl.Null:
        return True
    if column.is_list:
        if not isinstance(dtype, pl.List | pl.Array):
            return False
        inner = dtype.inner
        return isinstance(inner, pl.DataType) and _accepts(Column(name="", type=column.type), inner)
    if column.type == "string":
        return isinstance(dtype, pl.String | pl.Categorical | pl.Enum)
    if column.type == "int64":
        times = isinstance(dtype, pl.Date | pl.Datetime | pl.Time)
        return dtype.is_integer() or dtype == pl.Boolean or times
    return dtype.is_float() or dtype.is_decimal() or dtype.is_integer()


def _values(series: pl.Series, kind: str) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return a column's values, markers where it is null, and where a value has no place."""
    if kind == "string":
        texts = series.cast(pl.String).fill_null("").to_numpy()
        return texts.astype(object, copy=False), np.zeros(len(series), bool)
    if kind == "float32":
        numbers = series.cast(pl.Float32).fill_null(float("nan")).to_numpy().copy()
        bad = np.isinf(numbers)
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
        lists = lists if item.max_len is None else lists.list.head(item.max_len)
        lengths = lists.list.len().fill_null(0).cast(pl.Int64).to_numpy()
        flat = lists.filter(pl.Series(lengths > 0)).explode()
    width = max(1, int(lengths.max(initial=0)))
    ids = np.full((len(series), width), marker, dtype)
    values, bad = _values(flat, kind)
    ids[np.arange(width) < lengths[:, None]] = values
    _note(item, bad, np.repeat(np.arange(len(series)), lengths)[bad], faults)
    return ids, lengths


def _note(item: Input, bad: npt.NDArray[np.bool_], rows: Array, faults: Faults) -> None:
    if bad.any():
        numbers = item.column.type == "float32"
        reason = Reason.INFINITE_NUMBER if numbers else Reason.INTEGER_OUT_OF_RANGE
        faults.add(reason, rows, item.name)
