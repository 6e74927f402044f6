"""Rows of a log that cannot be used: written as they came, counted by reason, limited in number."""

from collections import Counter
from pathlib import Path

import polars as pl

from pipelines.logs.logs import ORIGINAL
from pipelines.rows.judged import REASON
from pipelines.work import ROW_ID
from recsys_moe.errors import DataError
from recsys_moe.files import whole_file

ROW_GROUP_ROWS = 65_536


def reasons_of(bad: pl.DataFrame) -> Counter[str]:
    """Count the reasons of unusable rows."""
    counts = bad[REASON].value_counts()
    return Counter(dict(counts.iter_rows()))


def check_quarantine(
    what: str, reasons: Counter[str], rows_in: int, max_share: float, folder: Path
) -> None:
    """Refuse a log of which too much is in quarantine.

    Raises:
        DataError: It is more than `max_share` of the rows.
    """
    num_bad = sum(reasons.values())
    if num_bad > max_share * rows_in:
        (reason, count), *_ = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        raise DataError(
            f"{what} in quarantine, got {num_bad:,} of {rows_in:,} ({num_bad / rows_in:.2%}), "
            f"{count:,} of them with {reason!r}. See {folder}."
        )


def write_quarantine(bad: pl.DataFrame, path: Path) -> None:
    """Write unusable rows of a log as they came, each with its number and reason."""
    originals = [name for name in bad.columns if name.startswith(ORIGINAL)]
    write_rows(
        bad.select(
            ROW_ID,
            pl.col(REASON).alias("reason"),
            *(
                pl.col(name).alias(_original_name(name.removeprefix(ORIGINAL)))
                for name in originals
            ),
        ),
        path,
    )


def sorted_reasons(reasons: Counter[str]) -> dict[str, int]:
    """Return reasons, the most frequent first."""
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def write_rows(rows: pl.DataFrame, path: Path) -> None:
    """Write rows of a prepared split or a quarantine whole, the same bytes for the same rows.

    Lists are copied first: what a filter leaves of them in memory shows in the file.
    """
    lists = [name for name, kind in rows.schema.items() if isinstance(kind, pl.List)]
    rows = rows.rechunk().with_columns(pl.col(lists).gather(pl.int_range(pl.len())))
    with whole_file(path) as partial:
        rows.write_parquet(partial, compression="zstd", row_group_size=ROW_GROUP_ROWS)


def _original_name(name: str) -> str:
    return f"{name}_source" if name in (ROW_ID, "reason") else name
