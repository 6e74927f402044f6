"""Raw logs: which files, which types, and one lazy frame over all of them in order.

Whatever the files hold becomes one of three types, scalar or list: int64 (integers, truth values,
dates and times as microseconds UTC), float32 (floats and decimals) and string. An empty string
and the smallest int64 are missing, like null.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipelines.checked import Faults
from pipelines.roles import Source
from recsys_moe.errors import RequestError
from recsys_moe.spec import INT64_MISSING, Column, ColumnType

FILE_SPLIT = "\x1fsplit"
ORIGINAL = "\x1foriginal "
_INFERRED_ROWS = 10_000
_LISTED = 12


@dataclass(frozen=True, slots=True)
class LogFile:
    """One raw file, the split it is named for ("all" if it is not) and its columns' types."""

    path: Path
    split: str
    schema: dict[str, pl.DataType]


def find_logs(source: Source, folder: Path, faults: Faults) -> list[tuple[str, Path]]:
    """Return (split, file) for every file of a source: train, valid, test or all, each by name."""
    found = []
    for split in ("all", "train", "valid", "test"):
        for pattern in source.patterns.get(split, ()):
            files = _matching(pattern, folder, source.format)
            if not files:
                path = source.path if split == "all" else f"source.{split}"
                wanted = f"a {source.format} file, a folder or a glob of them"
                faults.note(path, wanted=wanted, got=f"{pattern!r}, which is none in {folder}")
            found += [(split, file) for file in files]
    return found


def _matching(pattern: str, folder: Path, file_format: str) -> list[Path]:
    path = Path(os.path.normpath(folder / pattern))
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(file for file in path.rglob(f"*.{file_format}") if file.is_file())
    anchor = Path(path.anchor)
    parts = path.relative_to(anchor).as_posix()
    is_glob = any(sign in pattern for sign in "*?[")
    return sorted(file for file in anchor.glob(parts) if file.is_file()) if is_glob else []


def read_schemas(source: Source, files: list[tuple[str, Path]]) -> list[LogFile]:
    """Read the columns of each file; the types of CSV are those of the first file.

    Raises:
        RequestError: A file cannot be read as what it should be.
    """
    logs: list[LogFile] = []
    declared = {
        column: pl.String() if kind in ("string", "datetime") else _CSV_TYPES[kind]
        for column, kind in source.types.items()
    }
    for split, path in files:
        with readable(str(path), source.format):
            if source.format == "parquet":
                schema = dict(pl.scan_parquet(path, hive_partitioning=False).collect_schema())
            else:
                known = {**(logs[0].schema if logs else {}), **declared}
                schema = dict(_scan_csv(source, path, known).collect_schema())
        logs.append(LogFile(path, split, schema))
    return logs


_CSV_TYPES: dict[str, pl.DataType] = {"int64": pl.Int64(), "float32": pl.Float64()}


def _scan_csv(source: Source, path: Path, types: dict[str, pl.DataType]) -> pl.LazyFrame:
    separator = source.separator
    header = pl.scan_csv(path, separator=separator, infer_schema_length=0).collect_schema().names()
    return pl.scan_csv(
        path,
        separator=separator,
        schema_overrides={column: kind for column, kind in types.items() if column in header},
        null_values=list(source.null_values) or None,
        infer_schema_length=_INFERRED_ROWS,
    )


def column_types(
    source: Source, logs: list[LogFile], wanted: dict[str, str], faults: Faults
) -> dict[str, Column]:
    """Return the type of each wanted column, noting what is missing or differs between files.

    Args:
        source: The source, with the types it declares.
        logs: The files and their columns.
        wanted: Column names, each with the path under which the dataset file names it.
        faults: Where to note what is wrong.
    """
    columns: dict[str, Column] = {}
    listed: set[Path] = set()
    for name, path in wanted.items():
        for log in logs:
            if name not in log.schema:
                wanted_words = f"a column of {log.path.name}"
                if log.path not in listed:
                    wanted_words += f" ({_listing(log, source)})"
                    listed.add(log.path)
                faults.note(path, wanted=wanted_words, got=repr(name), choices=list(log.schema))
                break
            found = _column(name, log.schema[name], source.types.get(name))
            if found is None:
                got = f"{name!r} of type {log.schema[name]} in {log.path.name}"
                faults.note(path, wanted="numbers, strings, dates or lists of these", got=got)
                break
            if log.schema[name] == pl.Null and name not in source.types:
                continue
            if columns.setdefault(name, found) != found:
                got = f"{_words(found)} in {log.path.name}"
                faults.note(path, wanted=f"{name!r} as {_words(columns[name])}", got=got)
                break
        else:
            columns.setdefault(name, Column(name=name, type="string"))
    return columns


def _listing(log: LogFile, source: Source) -> str:
    """Say which columns a file has, the first of many, or that its separator seems another."""
    names = list(log.schema)
    if source.format == "csv" and len(names) == 1 and any(sign in names[0] for sign in ";\t|,"):
        return f"it has only {names[0]!r}: is its separator {source.separator!r}?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"it has {', '.join(names[:_LISTED]) or 'none'}{more}"


def check_declared(source: Source, logs: list[LogFile], faults: Faults) -> None:
    """Note declared types of columns that no file has."""
    choices = list(dict.fromkeys(name for log in logs for name in log.schema))
    for name in source.types:
        if name not in choices:
            faults.note(f"source.types.{name}", wanted="a column", got=repr(name), choices=choices)


def _words(column: Column) -> str:
    return f"a list of {column.type}" if column.is_list else column.type


def _column(name: str, kind: pl.DataType, declared: str | None) -> Column | None:
    """Return the type that a column of the source becomes; None if it has none."""
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


def scan_logs(source: Source, logs: list[LogFile], columns: dict[str, Column]) -> pl.LazyFrame:
    """Return all rows in order: `row_id`, the wanted columns in their types, and the originals.

    Originals carry the prefix `ORIGINAL`, and `FILE_SPLIT` says which split a row's file is for.
    """
    mixed = {
        name
        for log in logs
        for name, kind in log.schema.items()
        if any(other.schema.get(name, kind) != kind for other in logs)
    }
    frames = []
    for log in logs:
        frame = (
            pl.scan_parquet(log.path, hive_partitioning=False)
            if source.format == "parquet"
            else _scan_csv(source, log.path, log.schema)
        )
        # Originals go to quarantine only; where files disagree on a type, as text if they can.
        originals = [
            (pl.col(name).cast(pl.String) if name in mixed else pl.col(name)).name.prefix(ORIGINAL)
            for name, kind in log.schema.items()
            if not (name in mixed and kind.is_nested())
        ]
        frames.append(
            frame.select(
                *(_plain(column, log.schema[name], source) for name, column in columns.items()),
                pl.lit(log.split).alias(FILE_SPLIT),
                *originals,
            )
        )
    rows = pl.concat(frames, how="diagonal")
    return rows.with_row_index("row_id").with_columns(pl.col("row_id").cast(pl.Int64))


def count_rows(source: Source, logs: list[LogFile]) -> int:
    """Count the rows of all files, apart from any plan that reads them."""
    total = 0
    for log in logs:
        frame = (
            pl.scan_parquet(log.path, hive_partitioning=False)
            if source.format == "parquet"
            else _scan_csv(source, log.path, log.schema)
        )
        with readable(str(log.path), source.format):
            total += frame.select(pl.len()).collect(engine="streaming").item()
    return total


def _plain(column: Column, kind: pl.DataType, source: Source) -> pl.Expr:
    """Return an expression that turns a column of a file into its type, missing values null."""
    raw = pl.col(column.name)
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
        if isinstance(kind, pl.Time):
            raw = raw.to_physical() // 1000
        else:
            unit = pl.Duration("us") if isinstance(kind, pl.Duration) else _utc(kind)
            raw = raw.cast(unit).to_physical()
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


def _utc(kind: pl.DataType) -> pl.DataType:
    """Return the microsecond type of a date or time; one without a zone is read as UTC."""
    zone = kind.time_zone if isinstance(kind, pl.Datetime) else None
    return pl.Datetime("us", zone)


@contextmanager
def readable(what: str, wanted: str) -> Iterator[None]:
    """Turn what Polars says of unreadable data into one line.

    Raises:
        RequestError: The data is not what was wanted.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RequestError(
            what, wanted=f"{wanted} rows of the types found or declared", got=first.rstrip(".")
        ) from error
