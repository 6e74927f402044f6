"""Prepared rows in order, a bounded number at a time."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl

from pipelines import plans


def batches(folder: Path, columns: Iterable[str]) -> Iterator[pl.DataFrame]:
    """Yield the rows of a folder of parquet files, file by file in name order, as they stand."""
    rows = pl.scan_parquet(folder / "*.parquet").select(list(dict.fromkeys(columns)))
    yield from plans.batches(rows)
