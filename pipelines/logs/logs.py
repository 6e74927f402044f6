"""Raw logs: which files, which columns and types, and a lazy frame over each file."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.dataset.roles import Source
from pipelines.logs.lake import Snapshot
from pipelines.logs.locations import as_glob, brief, is_url, stamp
from pipelines.logs.text_files import check_csv, check_objects
from pipelines.logs.values import plain
from pipelines.plans import collect
from recsys_moe.errors import RequestError
from recsys_moe.files import sha256_file
from recsys_moe.spec import Column

FILE_SPLIT = "\x1fsplit"
ORIGINAL = "\x1foriginal "
INFERRED_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class LogFile:
    """One raw file: its path or URL, the split it is named for ("all" if it is not), its columns.

    `constants` are columns that the file itself does not hold, with their value in all its rows:
    the partition it is in. `originals` are the columns that quarantine keeps, those of all files of
    a log and of one type in all. `snapshot` is the state of the table that the file is of.
    """

    location: str
    split: str
    schema: dict[str, pl.DataType]
    constants: dict[str, Any] = field(default_factory=dict)
    originals: dict[str, pl.DataType] = field(default_factory=dict)
    snapshot: Snapshot | None = None

    @property
    def name(self) -> str:
        """Its name, without the folders."""
        return self.location.rpartition("/")[2]


def identity(log: LogFile) -> dict[str, Any]:
    """Return what tells a file from any other content, as plain values.

    Of a local file the digest of its bytes; of one in a store its size and time of change; of a
    table's the table's snapshot, as its files never change.

    Raises:
        RequestError: The file cannot be read any more.
    """
    what: dict[str, Any] = {"name": log.name, "split": log.split}
    if log.snapshot is not None:
        state = log.snapshot
        return what | {"table": state.table, "snapshot": state.version, "size": state.size}
    if log.constants:
        what["keys"] = dict(log.constants)
    with readable(log.location, "readable"):
        if is_url(log.location):
            return what | {"url": log.location, **stamp(log.location)}
        return what | {"sha256": sha256_file(Path(log.location))}


def scan_parquet(location: str) -> pl.LazyFrame:
    """Return the rows of one file of parquet; what its folders say is not looked at."""
    return pl.scan_parquet(location, glob=False, hive_partitioning=False)


def scan_csv(source: Source, location: str, types: dict[str, pl.DataType]) -> pl.LazyFrame:
    """Return the rows of one file of CSV; columns without a type given have one guessed."""
    return pl.scan_csv(
        location,
        glob=False,
        separator=source.separator,
        schema_overrides=types,
        null_values=list(source.null_values) or None,
        infer_schema_length=INFERRED_ROWS,
    )


def scan_file(source: Source, log: LogFile, columns: dict[str, Column]) -> pl.LazyFrame:
    """Return the rows of one file in order: the wanted columns in their types, and the originals.

    Originals carry the prefix `ORIGINAL`, and `FILE_SPLIT` says which split the file is for.
    """
    return _scan(source, log).select(
        *(plain(column, log.schema[name], source) for name, column in columns.items()),
        pl.lit(log.split).alias(FILE_SPLIT),
        *(
            _original(name, log.schema.get(name), kind).alias(f"{ORIGINAL}{name}")
            for name, kind in (log.originals or log.schema).items()
        ),
    )


def _original(name: str, found: pl.DataType | None, kind: pl.DataType) -> pl.Expr:
    if found is None:
        return pl.lit(None, kind)
    return pl.col(name) if found == kind else pl.col(name).cast(kind)


def _scan(source: Source, log: LogFile) -> pl.LazyFrame:
    inside = {name: kind for name, kind in log.schema.items() if name not in log.constants}
    if source.format == "csv":
        rows = scan_csv(source, log.location, inside)
    elif source.format == "ndjson":
        rows = pl.scan_ndjson(as_glob(log.location), schema=inside)
    else:
        rows = scan_parquet(log.location)
    return rows.with_columns(
        pl.lit(value, log.schema[name]).alias(name) for name, value in log.constants.items()
    )


def count_rows(source: Source, log: LogFile) -> int:
    """Count the rows of one file; text is judged as a whole meanwhile.

    Raises:
        RequestError: It cannot be read, a line of it is broken, or it has no rows.
    """
    if source.format == "csv":
        rows = check_csv(log.location, source.separator)
    else:
        counted = [pl.len()]
        if source.format == "ndjson":  # only what is asked for is parsed
            counted += [pl.col(name).null_count().alias(f"{name}\x1f") for name in log.schema]
        with line_named(source, log.location):
            rows = int(collect(_scan(source, log).select(counted))["len"].item())
    if not rows and not source.allow_empty:
        wanted = "rows (source.allow_empty: true lets files have none)"
        raise RequestError(log.location, wanted=wanted, got="none")
    return rows


@contextmanager
def line_named(source: Source, location: str) -> Iterator[None]:
    """Find the broken line of text that Polars cannot read; it does not say which it is."""
    try:
        with readable(location, source.format):
            yield
    except RequestError:
        if source.format == "csv":
            check_csv(location, source.separator)
        elif source.format == "ndjson":
            check_objects(location)
        raise


@contextmanager
def readable(what: str, wanted: str) -> Iterator[None]:
    """Turn what Polars says of unreadable data into one line.

    Raises:
        RequestError: The data is not what was wanted.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        wanted = f"{wanted} rows of the types found or declared"
        raise RequestError(what, wanted=wanted, got=brief(error)) from error
