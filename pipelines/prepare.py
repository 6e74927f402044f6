"""Raw rows to prepared rows: labelled, split, checked, and sunk to parquet in their order."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipelines.labels import label, label_fault
from pipelines.logs import ORIGINAL, LogFile, count_rows, readable, scan_logs
from pipelines.roles import SPLITS, Dataset
from pipelines.split import split_of, time_starts
from recsys_moe.errors import DataError, RequestError
from recsys_moe.files import whole_file
from recsys_moe.spec import Column

ROW_GROUP_ROWS = 65_536
_SPLIT, _REASON = "\x1fassigned", "\x1freason"


@dataclass(frozen=True, slots=True)
class Prepared:
    """How many rows came, where they went, and the span of time of the train split."""

    rows_in: int
    rows: dict[str, int]
    quarantined: dict[str, int]
    train_window: tuple[int, int] | None


def prepared_files(output: Path, split: str) -> Path:
    """Return the folder of a split's prepared rows."""
    return output / "prepared" / split


def prepare(
    dataset: Dataset,
    logs: list[LogFile],
    columns: dict[str, Column],
    output: Path,
    max_quarantine_share: float,
    joined: pl.DataFrame | None = None,
) -> Prepared:
    """Write `prepared/<split>/` and `quarantine/`; no row is lost between them.

    Args:
        dataset: What the dataset file says.
        logs: The files of rows.
        columns: The types of the wanted columns.
        output: The folder to write.
        max_quarantine_share: The share of rows above which unusable ones are an error.
        joined: Labels by the join column, from `pipelines.attribution`: a row without has 0.

    Raises:
        RequestError: The source is unreadable or empty, or a split has no rows.
        DataError: More than `max_quarantine_share` of the rows cannot be used.
    """
    rows_in = count_rows(dataset.source, logs)
    if not rows_in:
        raise RequestError(f"dataset {dataset.name!r}, source", wanted="rows", got="none")
    with readable(f"dataset {dataset.name!r}, source", dataset.source.format):
        rows = scan_logs(dataset.source, logs, columns)
        if joined is not None:
            rows = join_labels(rows, joined, dataset.source.join or "")
            columns = columns | {
                task.column: Column(name=task.column, type="int64")
                for task in dataset.tasks
                if task.events is not None
            }
        rows = plan(dataset, rows, columns)
        _write(dataset, rows, columns, output)
        window = _train_window(dataset, rows)
    counts = {split: _height(prepared_files(output, split)) for split in SPLITS}
    quarantined = quarantine_reasons(output / "quarantine")
    num_bad = sum(quarantined.values())
    if rows_in != sum(counts.values()) + num_bad:
        raise RuntimeError(f"{rows_in} rows came, {counts} and {num_bad} quarantined went")
    what = f"dataset {dataset.name!r}: wanted at most {max_quarantine_share:.2%} of the rows"
    check_quarantine(what, quarantined, rows_in, max_quarantine_share, output / "quarantine")
    for split, count in counts.items():
        if not count:
            what = f"dataset {dataset.name!r}, split"
            raise RequestError(what, wanted=f"rows in {split}", got=f"none of {rows_in:,}")
    return Prepared(rows_in, counts, quarantined, window)


def join_labels(rows: pl.LazyFrame, joined: pl.DataFrame, join: str) -> pl.LazyFrame:
    """Add the labels of each row's impression, 0 where it has none; the order stays."""
    labels = pl.col(name for name in joined.columns if name != join)
    return rows.join(joined.lazy(), on=join, how="left", maintain_order="left").with_columns(
        labels.fill_null(0)
    )


def quarantine_reasons(folder: Path) -> dict[str, int]:
    """Count the reasons in a quarantine, the most frequent first."""
    reasons = (
        pl.scan_parquet(folder / "*.parquet")
        .group_by("reason")
        .len()
        .sort("len", "reason", descending=[True, False])
        .collect()
    )
    return dict(reasons.iter_rows())


def check_quarantine(
    what: str, reasons: dict[str, int], rows_in: int, max_share: float, folder: Path
) -> None:
    """Refuse a log of which too much is in quarantine.

    Raises:
        DataError: It is more than `max_share` of the rows.
    """
    num_bad = sum(reasons.values())
    if num_bad > max_share * rows_in:
        reason, count = next(iter(reasons.items()))
        raise DataError(
            f"{what} in quarantine, got {num_bad:,} of {rows_in:,} ({num_bad / rows_in:.2%}), "
            f"{count:,} of them with {reason!r}. See {folder}."
        )


def plan(dataset: Dataset, rows: pl.LazyFrame, columns: dict[str, Column]) -> pl.LazyFrame:
    """Add the split of each row and the first reason, if any, why it cannot be used."""
    reasons = list(_reasons(dataset, columns))
    split, starts = dataset.split, (0, 0)
    if split.by == "time":
        sound = rows.filter(pl.coalesce(reasons).is_null()) if reasons else rows
        starts = time_starts(sound, split)
    assigned = split_of(split, columns.get(split.column or ""), starts)
    unassigned = pl.when(pl.col(_SPLIT).is_null()).then(
        pl.lit(f"split: no rule for the value of {split.column}")
        if split.by == "column"
        else pl.lit(f"split: {split.column} is missing")
    )
    return rows.with_columns(assigned.alias(_SPLIT)).with_columns(
        pl.coalesce([*reasons, unassigned]).alias(_REASON)
    )


def _reasons(dataset: Dataset, columns: dict[str, Column]) -> Iterator[pl.Expr]:
    """Yield, for each way a row can be unusable, the reason where it is and null elsewhere."""
    for key in dataset.keys:
        yield pl.when(pl.col(key).is_null()).then(pl.lit(f"key {key}: missing"))
    join = dataset.source.join
    if join and join not in dataset.keys:
        yield pl.when(pl.col(join).is_null()).then(pl.lit(f"join {join}: missing"))
    for task in dataset.tasks:
        yield label_fault(task, columns[task.column])
    if dataset.row_weight:
        weight = pl.col(dataset.row_weight).cast(pl.Float32)
        sound = weight.is_finite() & (weight >= 0)
        yield pl.when(~sound.fill_null(False)).then(
            pl.lit(f"row weight {dataset.row_weight}: not a finite number from 0 up")
        )


def _write(dataset: Dataset, rows: pl.LazyFrame, columns: dict[str, Column], output: Path) -> None:
    """Run the plan into one file per split and one for quarantine.

    One sink after the other: all four at once are no faster and hold twice the memory.
    """
    kept = ["row_id", *dataset.keys, dataset.user, *dataset.input_columns, dataset.row_weight]
    prepared = [
        *(pl.col(name) for name in dict.fromkeys(name for name in kept if name)),
        *(label(task, columns[task.column]) for task in dataset.tasks),
    ]
    sound, bad = pl.col(_REASON).is_null(), pl.col(_REASON).is_not_null()
    for split in SPLITS:
        mine = rows.filter(sound & (pl.col(_SPLIT) == split))
        _sink(mine.select(prepared), prepared_files(output, split))
    write_quarantine(rows.filter(bad), pl.col(_REASON), output / "quarantine")


def write_quarantine(bad: pl.LazyFrame, reason: pl.Expr, folder: Path) -> None:
    """Write unusable rows of a log as they came, each with its number and reason."""
    originals = [name for name in bad.collect_schema() if name.startswith(ORIGINAL)]
    quarantine = [
        pl.col("row_id"),
        reason.alias("reason"),
        *(pl.col(name).alias(_original_name(name.removeprefix(ORIGINAL))) for name in originals),
    ]
    _sink(bad.select(quarantine), folder)


def _sink(rows: pl.LazyFrame, folder: Path) -> None:
    with whole_file(folder / "part-00000.parquet") as partial:
        rows.sink_parquet(
            partial,
            compression="zstd",
            row_group_size=ROW_GROUP_ROWS,
            maintain_order=True,
            engine="streaming",
        )


def _original_name(name: str) -> str:
    return f"{name}_source" if name in ("row_id", "reason") else name


def _train_window(dataset: Dataset, rows: pl.LazyFrame) -> tuple[int, int] | None:
    """Return the first and last timestamp of the train split, if the split is by time."""
    if dataset.split.by != "time":
        return None
    time = pl.col(dataset.split.column or "")
    train = rows.filter(pl.col(_REASON).is_null() & (pl.col(_SPLIT) == "train"))
    first, last = (
        train.select(time.min().alias("first"), time.max().alias("last"))
        .collect(engine="streaming")
        .row(0)
    )
    return None if first is None else (first, last)


def _height(folder: Path) -> int:
    return int(pl.scan_parquet(folder / "*.parquet").select(pl.len()).collect().item())
