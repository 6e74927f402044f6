"""Finding the files of a log, and reading which columns each has."""

from dataclasses import replace
from pathlib import Path

import polars as pl

from pipelines.dataset.checked import Faults
from pipelines.dataset.roles import TABLE_FORMATS, Source
from pipelines.logs.lake import table_files
from pipelines.logs.locations import as_glob, find, is_url
from pipelines.logs.logs import INFERRED_ROWS, LogFile, line_named, scan_csv, scan_parquet
from pipelines.logs.text_files import check_objects, csv_header
from pipelines.plans import collect

_ENDINGS = {
    "parquet": (".parquet",),
    "csv": (".csv", ".csv.gz", ".csv.zst"),
    "ndjson": (".ndjson", ".jsonl", ".ndjson.gz", ".jsonl.gz", ".ndjson.zst", ".jsonl.zst"),
}
_TEXT_TYPES: dict[str, pl.DataType] = {
    "string": pl.String(),
    "datetime": pl.String(),
    "int64": pl.Int64(),
    "float32": pl.Float64(),
}


def open_logs(source: Source, folder: Path, faults: Faults) -> list[LogFile]:
    """Find the files of a log, train before valid before test, each by name; read their columns.

    Args:
        source: What the dataset file says.
        folder: Where relative paths start.
        faults: Where to note what is not there.

    Raises:
        RequestError: A file cannot be read as what it should be, or a table cannot be.
    """
    logs = []
    for split in ("all", "train", "valid", "test"):
        for pattern in source.patterns.get(split, ()):
            if source.format in TABLE_FORMATS:
                files = _table_logs(source, split, pattern, folder)
            else:
                files = _plain_logs(source, split, pattern, folder)
            if not files:
                path = source.path if split == "all" else f"source.{split}"
                wanted = f"a {source.format} file, a folder or a glob of them"
                got = f"{pattern!r}, which is none in {folder}"
                if is_url(pattern):
                    got = f"{pattern!r}, where there is none"
                faults.note(path, wanted=wanted, got=got)
            logs += files
    logs = _with_schemas(source, _typed_keys(source, logs))
    originals = _originals(logs)
    return [replace(log, originals=originals) for log in logs]


def _table_logs(source: Source, split: str, path: str, folder: Path) -> list[LogFile]:
    return [
        LogFile(file.location, split, file.schema, file.constants, snapshot=file.snapshot)
        for file in table_files(source.format, path, folder, source.snapshot)
    ]


def _plain_logs(source: Source, split: str, pattern: str, folder: Path) -> list[LogFile]:
    found = find(pattern, folder, _ENDINGS[source.format])
    return [LogFile(file.location, split, {}, dict(file.keys)) for file in found]


def _typed_keys(source: Source, logs: list[LogFile]) -> list[LogFile]:
    """Make the keys of folders integers where all files have one; declared types read text."""
    if source.format in TABLE_FORMATS:
        return logs
    names = {name for log in logs for name in log.constants}
    whole = {
        name
        for name in names - source.types.keys()
        if all(_is_int64(log.constants.get(name)) for log in logs)
    }
    return [
        replace(
            log,
            constants={
                name: int(value) if name in whole and value is not None else value
                for name, value in log.constants.items()
            },
            schema={name: pl.Int64() if name in whole else pl.String() for name in log.constants},
        )
        for log in logs
    ]


def _is_int64(value: str | None) -> bool:
    if value is None:
        return True
    digits = value.removeprefix("-")
    return digits.isascii() and digits.isdigit() and -(2**63) < int(value) < 2**63


def _with_schemas(source: Source, logs: list[LogFile]) -> list[LogFile]:
    """Read the columns of each file; the types of text are those of the first file with rows."""
    if source.format in TABLE_FORMATS:
        return logs
    found: list[tuple[LogFile, dict[str, pl.DataType], bool]] = []
    known: dict[str, pl.DataType] = {}
    for log in logs:
        with line_named(source, log.location):
            own, is_empty = _own_schema(source, log.location, known)
        if not known and not is_empty:
            known = own
        found.append((log, own, is_empty))
    return [
        replace(
            log,
            schema={
                **({name: known.get(name, kind) for name, kind in own.items()} if empty else own),
                **{name: kind for name, kind in log.schema.items() if name not in own},
            },
            constants={name: value for name, value in log.constants.items() if name not in own},
        )
        for log, own, empty in found
    ]


def _own_schema(
    source: Source, location: str, known: dict[str, pl.DataType]
) -> tuple[dict[str, pl.DataType], bool]:
    """Return the columns in a file, and whether it is text without rows, which has no types."""
    if source.format == "parquet":
        return dict(scan_parquet(location).collect_schema()), False
    declared = {name: _TEXT_TYPES[kind] for name, kind in source.types.items()}
    if source.format == "csv":
        header = csv_header(location, source.separator)
        given = {name: kind for name, kind in {**known, **declared}.items() if name in header}
        rows = scan_csv(source, location, given)
        return dict(rows.collect_schema()), collect(rows.head(1)).is_empty()
    try:
        found = pl.scan_ndjson(
            as_glob(location), infer_schema_length=INFERRED_ROWS
        ).collect_schema()
    except pl.exceptions.PolarsError:
        if not check_objects(location):
            return dict(known), True
        raise
    own = {name: known.get(name, kind) if kind == pl.Null else kind for name, kind in found.items()}
    return {name: declared.get(name, kind) for name, kind in own.items()}, False


def _originals(logs: list[LogFile]) -> dict[str, pl.DataType]:
    """Return the columns of all files, as text where files disagree on a type, if text can be."""
    found: dict[str, pl.DataType | None] = {}
    for log in logs:
        for name, kind in log.schema.items():
            if found.setdefault(name, kind) != kind:
                mixed = found[name]
                nested = mixed is None or mixed.is_nested() or kind.is_nested()
                found[name] = None if nested else pl.String()
    return {name: kind for name, kind in found.items() if kind is not None}
