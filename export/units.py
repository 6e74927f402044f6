"""The work of a scoring job: parquet files, and their row groups as units.

Pyarrow reads here because it can read one row group of a file in pieces.
"""

import glob
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_moe.errors import RequestError

_MAGIC, _TAIL_BYTES = b"PAR1", 8


@dataclass(frozen=True, slots=True)
class InputFile:
    """A parquet file, as its footer describes it.

    Attributes:
        path: Where it is.
        name: Its path below the folder that all input files share.
        bytes: Its size.
        row_groups: Rows of each row group.
        footer_sha256: Digest of the footer: schema, statistics and places of all pages.
        schema: Column types.
    """

    path: Path
    name: str
    bytes: int
    row_groups: tuple[int, ...]
    footer_sha256: str
    schema: pa.Schema

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(self.row_groups)

    @property
    def polars_schema(self) -> pl.Schema:
        """The column types as Polars sees them."""
        return pl.DataFrame(self.schema.empty_table()).schema

    @property
    def identity(self) -> dict[str, Any]:
        """What makes this the same file in another run."""
        return {
            "name": self.name,
            "bytes": self.bytes,
            "row_groups": list(self.row_groups),
            "footer_sha256": self.footer_sha256,
        }


@dataclass(frozen=True, slots=True)
class Unit:
    """One row group of one file, and so one part of the output.

    Attributes:
        file: The file.
        file_index: Its number, in the order of the input.
        row_group: Number of the row group in it.
        rows: Rows in the group.
        first_row: Number of its first row, counted over the whole input.
    """

    file: InputFile
    file_index: int
    row_group: int
    rows: int
    first_row: int

    @property
    def name(self) -> str:
        """What output files are named after: `00002-00017`."""
        return f"{self.file_index:05d}-{self.row_group:05d}"

    def batches(self, columns: Sequence[str] | None, batch_rows: int) -> Iterator[pa.Table]:
        """Read some columns, or all, in tables of `batch_rows` rows (the last may be shorter).

        Raises:
            RequestError: The file changed since its footer was read, or its pages are damaged.
        """
        path, metadata = self.file.path, _metadata(self.file.path, self.file.footer_sha256)
        with reading(path), pq.ParquetFile(path, metadata=metadata, pre_buffer=False) as file:
            batches = file.iter_batches(
                batch_size=batch_rows,
                row_groups=[self.row_group],
                columns=None if columns is None else list(columns),
            )
            seen = 0
            for batch in batches:
                seen += batch.num_rows
                table = pa.Table.from_batches([batch])
                yield table if columns is None else table.select(list(columns))
        if seen != self.rows:
            wanted = f"{self.rows} rows in row group {self.row_group}"
            raise RequestError(f"input={self.file.path}", wanted=wanted, got=f"{seen}")


def find_files(where: str) -> list[InputFile]:
    """Return the parquet files of a path, a folder or a glob, in the order of their names.

    Folders are searched to any depth; names that begin with `.` or `_` are left out.

    Raises:
        RequestError: There is none, they hold no row, or one cannot be read.
    """
    if "://" in where:
        raise RequestError(f"input={where}", wanted="a path on this machine", got="a URL")
    found = (
        [Path(where)]
        if Path(where).exists()
        else [Path(p) for p in glob.glob(where, recursive=True)]  # noqa: PTH207
    )
    paths = sorted(
        {path.absolute() for place in found for path in _below(place)}, key=Path.as_posix
    )
    if not paths:
        got = "no such path" if not found else "no parquet file"
        raise RequestError(f"input={where}", wanted="parquet files", got=got)
    shared = _shared_folder(paths)
    files = [read_footer(path, path.relative_to(shared).as_posix()) for path in paths]
    if not any(file.rows for file in files):
        raise RequestError(
            f"input={where}", wanted="at least one row", got=f"none in {len(files)} files"
        )
    return files


def list_units(files: Sequence[InputFile]) -> list[Unit]:
    """Return the units of some files, in input order; an empty row group is none."""
    units, first_row = [], 0
    for file_index, file in enumerate(files):
        for row_group, rows in enumerate(file.row_groups):
            if rows:
                units.append(Unit(file, file_index, row_group, rows, first_row))
            first_row += rows
    return units


def read_footer(path: Path, name: str) -> InputFile:
    """Read what a parquet file says of itself.

    Raises:
        RequestError: It cannot be read, is cut short, or is no parquet file.
    """
    with reading(path), path.open("rb") as handle:
        size = handle.seek(0, 2)
        handle.seek(max(0, size - _TAIL_BYTES))
        tail = handle.read()
        if tail[4:] != _MAGIC:
            other = path.suffix.lower() not in ("", ".parquet", ".pq")
            raise RequestError(
                f"input={path}",
                wanted="a whole parquet file" + (" (no other format is read)" if other else ""),
                got=f"{size} bytes that end otherwise",
            )
        handle.seek(max(0, size - _TAIL_BYTES - int.from_bytes(tail[:4], "little")))
        footer = hashlib.sha256(handle.read()).hexdigest()
        metadata = pq.read_metadata(path)
        groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        return InputFile(path, name, size, groups, footer, metadata.schema.to_arrow_schema())


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file is read into one error that names it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        got = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RequestError(f"input={path}", wanted="a readable parquet file", got=got) from error


@lru_cache(maxsize=4)
def _metadata(path: Path, footer_sha256: str) -> pq.FileMetaData:
    """Parse a footer once for all row groups of a file, which are read one after the other."""
    with reading(path):
        return pq.read_metadata(path)


def _below(place: Path) -> list[Path]:
    """Return a file itself, or the parquet files in a folder."""
    if not place.is_dir():
        return [place]
    return [
        path
        for path in place.rglob("*.parquet")
        if path.is_file() and not any(p[0] in "._" for p in path.relative_to(place).parts)
    ]


def _shared_folder(paths: Sequence[Path]) -> Path:
    """Return the deepest folder that all paths are in."""
    folder = paths[0].parent
    while not all(path.is_relative_to(folder) for path in paths):
        folder = folder.parent
    return folder
