"""Rows shuffled into buckets by a hash of a key, so that all rows of one key are together.

A bucket is small enough for memory whatever the size of the logs. Each writer adds one file to
every bucket that it has rows for; a bucket is read in the order of its writers' names.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import polars as pl
import pyarrow.parquet as pq

from pipelines.encoding.hashes import text_of, xxhash64

ROWS_PER_BUCKET = 250_000
_UNIT_ROWS = 2_000_000
_GROUP_ROWS = 8_192
_BUCKET = "\x1fbucket"


def num_buckets(rows: int) -> int:
    """Return how many buckets keep each one near `ROWS_PER_BUCKET`."""
    return max(1, -(-rows // ROWS_PER_BUCKET))


def units(first_rows: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the numbers of files in groups of many rows, so that no bucket has many small files.

    Args:
        first_rows: The number of each file's first row, and at the end that of all rows.
    """
    groups: list[list[int]] = []
    for number, first in enumerate(first_rows[:-1]):
        if not groups or first - first_rows[groups[-1][0]] >= _UNIT_ROWS:
            groups.append([])
        groups[-1].append(number)
    return [tuple(group) for group in groups]


class BucketWriter:
    """One writer's share of every bucket; close it, or use it in a `with`."""

    def __init__(self, folder: Path, name: str, num_buckets: int) -> None:
        self.folder, self.name, self.num_buckets = folder, name, num_buckets
        self._writers: dict[int, pq.ParquetWriter] = {}
        self._waiting: dict[int, list[pl.DataFrame]] = {}

    def add(self, rows: pl.DataFrame, key: str) -> None:
        """Append rows, each to the bucket of its key; those without a key go to the first."""
        if self.num_buckets == 1:
            self._write(0, rows)
            return
        kind = "string" if rows[key].dtype == pl.String else "int64"
        hashed = xxhash64(text_of(pl.col(key), kind), 0) % self.num_buckets
        parts = rows.with_columns(hashed.fill_null(0).alias(_BUCKET)).partition_by(
            _BUCKET, as_dict=True, include_key=False, maintain_order=True
        )
        for (bucket,), part in parts.items():
            self._write(int(bucket), part)

    def _write(self, bucket: int, rows: pl.DataFrame) -> None:
        """Write a bucket's rows when enough of them have come."""
        waiting = self._waiting.setdefault(bucket, [])
        waiting.append(rows)
        if sum(map(len, waiting)) >= _GROUP_ROWS:
            self._flush(bucket)

    def _flush(self, bucket: int) -> None:
        rows = pl.concat(self._waiting.pop(bucket))
        if not len(rows):
            return
        table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
        if bucket not in self._writers:
            path = bucket_folder(self.folder, bucket) / f"{self.name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writers[bucket] = pq.ParquetWriter(
                path,
                table.schema,
                compression="none",
                use_dictionary=False,
                write_statistics=False,
            )
        self._writers[bucket].write_table(table)

    def close(self) -> None:
        """Finish every file."""
        for bucket in [*self._waiting]:
            self._flush(bucket)
        for writer in self._writers.values():
            writer.close()

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close every file."""
        self.close()


def bucket_folder(folder: Path, bucket: int) -> Path:
    """Return where the files of one bucket are."""
    return folder / f"bucket-{bucket:05}"


def read_bucket(folder: Path, bucket: int) -> pl.DataFrame | None:
    """Return the rows of a bucket in the order of their writers; None if it has none."""
    files = sorted(bucket_folder(folder, bucket).glob("*.parquet"))
    return pl.concat([pl.read_parquet(file) for file in files]) if files else None
