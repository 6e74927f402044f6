"""Rows that repeat the keys of an earlier row, found bucket by bucket."""

import polars as pl

from pipelines.events.buckets import BucketWriter, read_bucket
from pipelines.plans import collect
from pipelines.work import ROW_ID, Work, file_batches
from recsys_moe.runners import Runner

_KEYS, _FOUND = "keys", "duplicates"
_SEPARATOR, _MISSING = "\x1f", "\x00null"


def find_duplicates(work: Work, runner: Runner) -> None:
    """Compare the keys of all rows, into a stage that `duplicates_of` reads."""
    for _ in runner.map(_scatter, work, range(len(work.logs))):
        pass
    for _ in runner.map(_search, work, range(work.num_buckets)):
        pass


def duplicates_of(work: Work, first: int, last: int) -> pl.Series:
    """Return the numbers of the rows from `first` to `last` whose keys came before."""
    found = pl.scan_parquet(work.stage(_FOUND) / "*.parquet")
    return collect(found.filter(pl.col(ROW_ID).is_between(first, last)))[ROW_ID]


def _scatter(work: Work, number: int) -> None:
    parts = [pl.col(key).cast(pl.String).fill_null(_MISSING) for key in work.dataset.keys]
    key = pl.concat_str(parts, separator=_SEPARATOR).alias("key")
    what = f"dataset {work.dataset.name!r}, source"
    plan = work.rows(number).select(ROW_ID, key)
    with BucketWriter(work.stage(_KEYS), f"{number:05}", work.num_buckets) as buckets:
        for batch in file_batches(what, work.dataset.source, plan):
            buckets.add(batch, "key")


def _search(work: Work, bucket: int) -> None:
    rows = read_bucket(work.stage(_KEYS), bucket)
    if rows is None:
        rows = pl.DataFrame(schema={ROW_ID: pl.Int64(), "key": pl.String()})
    again = rows.sort(ROW_ID).filter(~pl.col("key").is_first_distinct()).select(ROW_ID)
    folder = work.stage(_FOUND)
    folder.mkdir(parents=True, exist_ok=True)
    again.write_parquet(folder / f"{bucket:05}.parquet")
