"""Raw columns by the names and types of the graphs: one input a scalar or vector, two a list.

Missing is `""`, INT64_MIN or NaN; a vector is missing where any of its numbers is. Strings travel
as object arrays of `str`: NumPy's fixed-width strings lose everything after a NUL, and ONNX Runtime
reads `None` as the word "None". Unlike the scoring job, which quarantines what it cannot score,
everything that has a type is passed on.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys_moe.errors import RequestError
from recsys_moe.spec import INT64_MISSING, Column

Array = npt.NDArray[Any]

MARKERS: dict[str, str | int | float] = {
    "string": "",
    "int64": INT64_MISSING,
    "float32": float("nan"),
}
_SCALARS: dict[str, pl.DataType] = {
    "string": pl.String(),
    "int64": pl.Int64(),
    "float32": pl.Float32(),
}


def polars_type(column: Column) -> pl.DataType:
    """Return a column's type in a frame; a vector is a list there."""
    scalar = _SCALARS[column.type]
    return pl.List(scalar) if column.is_list or column.dim else scalar


def input_names(column: Column) -> tuple[str, ...]:
    """Return the graph inputs that carry a column.

    >>> input_names(Column(name="age", type="int64"))
    ('age',)
    >>> input_names(Column(name="tags", type="string", is_list=True))
    ('tags_ids', 'tags_len')
    """
    return (f"{column.name}_ids", f"{column.name}_len") if column.is_list else (column.name,)


def raw_feeds(frame: pl.DataFrame, columns: Iterable[Column]) -> dict[str, Array]:
    """Return what a session takes for the rows of a frame.

    Args:
        frame: Rows with at least the columns, of the columns' types (lists of them for lists).
        columns: The manifest's inputs or the spec's columns.

    Returns:
        Arrays [rows], for vectors [rows, dim] and, for lists, [rows, longest] padded with the
        missing marker.

    Raises:
        RequestError: A column is not there or of another type, or a vector of another length.
    """
    feeds: dict[str, Array] = {}
    for column in columns:
        series = _typed(frame, column)
        if column.dim is not None:
            feeds[column.name], misfits = vectors(series, column.dim)
            if misfits.any():
                got = f"another length in row {int(misfits.argmax())}"
                wanted = f"vectors of {column.dim} numbers"
                raise RequestError(f"column {column.name!r}", wanted=wanted, got=got)
            continue
        if not column.is_list:
            feeds[column.name] = _scalars(series, column)
            continue
        ids, length = input_names(column)
        feeds[length] = series.list.len().fill_null(0).cast(pl.Int64).to_numpy()
        flat = series.list.explode(keep_nulls=False, empty_as_null=False)
        feeds[ids] = _padded(_scalars(flat, column), feeds[length], column)
    return feeds


def vectors(series: pl.Series, dim: int) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return lists of numbers as an array, and which of them have no place in it.

    Args:
        series: Lists of numbers of any type.
        dim: How many each should have.

    Returns:
        float32 [rows, dim], NaN for what is null or of another length, and bool [rows], true for
        another length.
    """
    fits = (series.list.len() == dim).fill_null(value=False)
    cells = np.full((len(series), dim), np.nan, np.float32)
    elements = series.filter(fits).explode().cast(pl.Float32).fill_null(np.nan)
    cells[fits.to_numpy()] = elements.to_numpy().reshape(-1, dim)
    return cells, (series.is_not_null() & ~fits).to_numpy()


def _typed(frame: pl.DataFrame, column: Column) -> pl.Series:
    what, wanted = f"column {column.name!r}", polars_type(column)
    if column.name not in frame.columns:
        raise RequestError(what, wanted=str(wanted), got="no such column", choices=frame.columns)
    series = frame[column.name]
    if series.dtype != wanted:
        raise RequestError(what, wanted=str(wanted), got=str(series.dtype))
    return series


def _scalars(series: pl.Series, column: Column) -> Array:
    filled = series.fill_null(MARKERS[column.type])
    return np.array(filled.to_list(), object) if column.type == "string" else filled.to_numpy()


def _padded(flat: Array, lengths: Array, column: Column) -> Array:
    longest = int(lengths.max(initial=0))
    cells = np.full((len(lengths), longest), MARKERS[column.type], dtype=flat.dtype)
    cells[np.arange(longest) < lengths[:, None]] = flat
    return cells
