"""Rows of many files by their number, some at a time and each read once.

What buckets write is ordered by row inside a file, and every stretch of rows is spread over all of
them. A window is read from all files at once and cut into the stretches that are asked for.
"""

from pathlib import Path

import polars as pl

from pipelines.plans import collect
from pipelines.work import ROW_ID

WINDOW_ROWS = 65_536
_LEAST_ROWS = 1_024


def write_rows(rows: pl.DataFrame, path: Path, num_files: int) -> None:
    """Write one of many files, ordered by row, in groups of about its share of a window."""
    path.parent.mkdir(parents=True, exist_ok=True)
    group = max(_LEAST_ROWS, WINDOW_ROWS // num_files)
    rows.write_parquet(path, compression="lz4", row_group_size=group)


class Windows:
    """The rows of a folder of parquet files with a `row_id`, asked for in rising order."""

    def __init__(self, folder: Path) -> None:
        self._files = folder / "*.parquet"
        self.is_empty = not any(folder.glob("*.parquet"))
        self._windows: dict[int, pl.DataFrame] = {}

    def between(self, first: int, last: int) -> pl.DataFrame:
        """Return the rows from number `first` to `last`, by number."""
        numbers = range(first // WINDOW_ROWS, last // WINDOW_ROWS + 1)
        self._windows = {number: self._window(number) for number in numbers}
        rows = pl.concat(self._windows.values())
        return rows.filter(pl.col(ROW_ID).is_between(first, last))

    def _window(self, number: int) -> pl.DataFrame:
        if number in self._windows:
            return self._windows[number]
        first = number * WINDOW_ROWS
        mine = pl.col(ROW_ID).is_between(first, first + WINDOW_ROWS - 1)
        return collect(pl.scan_parquet(self._files).filter(mine)).sort(ROW_ID)
