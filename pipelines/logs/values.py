"""Values as files hold them to one of three types: int64, float32 or string, or lists of these.

Dates and times become microseconds UTC. An empty string and the smallest int64 are missing, like
null.
"""

import polars as pl

from pipelines.dataset.roles import Source
from recsys_moe.spec import INT64_MISSING, Column, ColumnType

_LARGEST = 2**63 - 1
_DAY_MICROS = 86_400_000_000


def type_of(name: str, kind: pl.DataType, declared: str | None) -> Column | None:
    """Return the type that a column of a file becomes; None if it has none."""
    if isinstance(kind, (pl.List, pl.Array)):
        inner = _scalar_type(kind.inner)  # type: ignore[arg-type]
        return None if inner is None or declared else Column(name=name, type=inner, is_list=True)
    scalar = _scalar_type(kind)
    if scalar is not None and declared is not None:
        scalar = "int64" if declared == "datetime" else declared  # type: ignore[assignment]
    return None if scalar is None else Column(name=name, type=scalar)


def _scalar_type(kind: pl.DataType) -> ColumnType | None:
    if kind.is_integer() or kind == pl.Boolean or kind.is_temporal():
        return "int64"
    if kind.is_float() or kind.is_decimal():
        return "float32"
    if kind == pl.Null or isinstance(kind, (pl.String, pl.Categorical, pl.Enum)):
        return "string"
    return None


def family(kind: pl.DataType) -> str:
    """Return what integers of a type count: those of another family are another thing."""
    if isinstance(kind, (pl.List, pl.Array)):
        return family(kind.inner)  # type: ignore[arg-type]
    if isinstance(kind, (pl.Date, pl.Datetime)):
        return "dates and times"
    if isinstance(kind, pl.Duration):
        return "durations"
    return "times of day" if isinstance(kind, pl.Time) else "numbers or text"


def plain(column: Column, kind: pl.DataType, source: Source) -> pl.Expr:
    """Return an expression that turns a column of a file into its type, missing values null."""
    raw = pl.col(column.name)
    if column.dim is not None:
        lists = raw.arr.to_list() if isinstance(kind, pl.Array) else raw
        return lists.cast(pl.List(pl.Float32))
    if column.is_list:
        inner = kind.inner if isinstance(kind, (pl.List, pl.Array)) else pl.Null()
        as_list = raw.arr.to_list() if isinstance(kind, pl.Array) else raw
        if kind == pl.Null:
            as_list = raw.cast(pl.List(pl.Null))
        return as_list.list.eval(_scalar(pl.element(), inner, column.type, source.null_values))  # type: ignore[arg-type]
    declared = source.types.get(column.name)
    if declared == "datetime" and kind == pl.String:
        raw = raw.str.to_datetime(time_unit="us", time_zone="UTC", strict=True)
        kind = pl.Datetime("us", "UTC")
    return _scalar(raw, kind, column.type, source.null_values)


def _scalar(
    raw: pl.Expr, kind: pl.DataType, wanted: ColumnType, null_values: tuple[str, ...]
) -> pl.Expr:
    if kind.is_temporal() and wanted != "string":
        raw = _micros(raw, kind)
    elif kind == pl.Boolean:
        raw = raw.cast(pl.Int64)
    elif kind.is_decimal():
        raw = raw.cast(pl.Float64)
    if wanted == "string":
        text = raw.cast(pl.String)
        return pl.when((text != "") & ~text.is_in(list(null_values))).then(text)
    if kind == pl.String and null_values:
        raw = pl.when(~raw.is_in(list(null_values))).then(raw)
    if wanted == "float32":
        return raw.cast(pl.Float64).cast(pl.Float32)
    number = raw.cast(pl.Int64)
    return pl.when(number != INT64_MISSING).then(number)


def _micros(raw: pl.Expr, kind: pl.DataType) -> pl.Expr:
    """Return dates and times as microseconds, without a zone as UTC.

    Those too far away for microseconds end at the farthest that there are: Polars would panic.
    """
    number = raw.to_physical().cast(pl.Int64)
    if isinstance(kind, pl.Date):
        most = _LARGEST // _DAY_MICROS
        return number.clip(-most, most) * _DAY_MICROS
    unit = "ns" if isinstance(kind, pl.Time) else getattr(kind, "time_unit", "us")
    if unit == "ms":
        most = _LARGEST // 1000
        return number.clip(-most, most) * 1000
    return number // 1000 if unit == "ns" else number
