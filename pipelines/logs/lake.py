"""Delta and Iceberg tables: a snapshot as the parquet files it is made of, by their own libraries.

What a plain reading of those files would get wrong is refused by name: deleted rows that are only
marked as such, and columns that were renamed without rewriting the files.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl
import pyarrow as pa
from pyarrow import fs, parquet

from pipelines.logs.locations import absolute, brief, file_system, is_url
from recsys_moe.errors import RequestError

_FIELD_ID = b"PARQUET:field_id"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Which state of which table a file belongs to, and how large the file is."""

    table: str
    version: int
    size: int


@dataclass(frozen=True, slots=True)
class TableFile:
    """A parquet file of a table: the table's columns, and the values of those not in the file."""

    location: str
    schema: dict[str, pl.DataType]
    constants: dict[str, Any]
    snapshot: Snapshot


def table_files(kind: str, path: str, folder: Path, version: int | None) -> list[TableFile]:
    """Return the files of a table's snapshot, in name order.

    Args:
        kind: delta or iceberg.
        path: The table: its folder or, of an Iceberg table, one of its metadata files.
        folder: Where relative paths start.
        version: The version of a Delta table or the snapshot of an Iceberg table; None: the latest.

    Raises:
        RequestError: There is no such table or snapshot, its library is not installed, or it holds
            what cannot be read as plain files.
    """
    whole = absolute(path, folder)
    resolve = _delta if kind == "delta" else _iceberg
    with _library(whole, kind):
        return sorted(resolve(whole, version), key=lambda file: file.location)


@contextmanager
def _library(table: str, kind: str) -> Iterator[None]:
    """Turn what a table's library says into one line."""
    try:
        yield
    except RequestError:
        raise
    except ImportError as error:
        wanted = f"a library that reads {kind} tables: pip install 'recsys-moe[lake]'"
        raise RequestError("source.format", wanted=wanted, got=brief(error)) from error
    except Exception as error:  # their errors share no base
        raise RequestError(table, wanted=f"a {kind} table", got=brief(error)) from error


def _delta(table: str, version: int | None) -> Iterator[TableFile]:
    from deltalake import DeltaTable

    state = DeltaTable(table, version=version)
    if state.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        wanted = "columns under their own names in the files: rewrite the table without mapping"
        raise RequestError(table, wanted=wanted, got="delta.columnMapping.mode")
    if "deletionVectors" in (state.protocol().reader_features or []):
        deleted = pa.RecordBatchReader.from_stream(state.deletion_vectors()).read_all().num_rows
        if deleted:
            wanted = "no deletion vectors: compact the table first"
            raise RequestError(table, wanted=wanted, got=f"them in {deleted:,} files")
    schema = _polars_schema(pa.schema(state.schema().to_arrow()))
    for action in pa.table(state.get_add_actions(flatten=True)).to_pylist():
        values = {
            name.removeprefix("partition."): value
            for name, value in action.items()
            if name.startswith("partition.")
        }
        snapshot = Snapshot(table, state.version(), action["size_bytes"])
        yield _table_file(_join(table, unquote(action["path"])), schema, values, snapshot)


def _join(table: str, path: str) -> str:
    return path if is_url(path) or path.startswith("/") else f"{table}/{path}"


def _iceberg(table: str, version: int | None) -> Iterator[TableFile]:
    from pyiceberg.io.pyarrow import schema_to_pyarrow
    from pyiceberg.table import StaticTable

    system, path = file_system(table)
    name = path if path.endswith(".metadata.json") else _latest_metadata(system, path)
    state = StaticTable.from_metadata(table.removesuffix(path) + name, _iceberg_settings())
    now = state.current_snapshot() if version is None else state.snapshot_by_id(version)
    if now is None:
        known = ", ".join(str(one.snapshot_id) for one in state.snapshots()) or "none"
        got = "no rows ever written" if version is None else str(version)
        raise RequestError(table, wanted=f"one of its snapshots ({known})", got=got)
    # The latest snapshot has the columns of now, which may be newer than it.
    scan = state.scan(snapshot_id=version)
    fields = schema_to_pyarrow(scan.projection())
    schema = _polars_schema(fields)
    for task in scan.plan_files():
        file = task.file
        if task.delete_files:
            wanted = "no delete files: compact the table first"
            raise RequestError(table, wanted=wanted, got=f"one for {file.file_path}")
        if file.file_format.value.lower() != "parquet":
            raise RequestError(file.file_path, wanted="parquet", got=file.file_format.value)
        location = absolute(file.file_path, Path("/"))
        _check_field_ids(location, fields)
        snapshot = Snapshot(table, now.snapshot_id, file.file_size_in_bytes)
        yield _table_file(location, schema, {}, snapshot)


def _iceberg_settings() -> dict[str, str]:
    """Return where objects are, which pyiceberg does not look for in the environment."""
    end_point = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return {"s3.endpoint": end_point} if end_point else {}


def _latest_metadata(system: fs.FileSystem, path: str) -> str:
    """Return the metadata file of the highest number in a table's folder."""
    selector = fs.FileSelector(f"{path}/metadata", allow_not_found=True)
    numbered: dict[int, list[str]] = {}
    for info in system.get_file_info(selector):
        found = re.match(r"v?(\d+)[-.].*metadata\.json$", info.base_name)
        if found:
            numbered.setdefault(int(found[1]), []).append(info.path)
    latest = numbered[max(numbered)] if numbered else []
    if len(latest) != 1:
        wanted = "an Iceberg table, or the path of one of its metadata files"
        raise RequestError(path, wanted=wanted, got=f"{len(latest)} latest metadata files in it")
    return latest[0]


def _check_field_ids(location: str, fields: pa.Schema) -> None:
    """Refuse a file whose columns do not have the names that the table now gives their ids."""
    system, path = file_system(location)
    found = parquet.read_schema(path, filesystem=system)
    names = {(field.metadata or {}).get(_FIELD_ID): field.name for field in found}
    for field in fields:
        name = names.get(field.metadata[_FIELD_ID])
        if name is None and (field.name in found.names or not field.nullable):
            wanted = f"the column {field.name!r} of the table, or none of that name"
            raise RequestError(location, wanted=wanted, got="another or none: rewrite the file")
        if name is not None and name != field.name:
            wanted = f"the column under its name in the table, {field.name!r}"
            raise RequestError(location, wanted=wanted, got=f"{name!r}: rewrite the file")


def _table_file(
    location: str, schema: dict[str, pl.DataType], values: dict[str, Any], snapshot: Snapshot
) -> TableFile:
    """Return a file with the types that it has; columns that it lacks are constants."""
    inside = dict(pl.scan_parquet(location, glob=False, hive_partitioning=False).collect_schema())
    constants = {name: values.get(name) for name in schema if name not in inside or name in values}
    kinds = {name: kind if name in constants else inside[name] for name, kind in schema.items()}
    return TableFile(location, kinds, constants, snapshot)


def _polars_schema(schema: pa.Schema) -> dict[str, pl.DataType]:
    frame = pl.from_arrow(schema.empty_table())
    return dict(frame.schema) if isinstance(frame, pl.DataFrame) else {}
