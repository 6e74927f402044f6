"""Raw rows to prepared rows: labelled, split, checked, and written in their order, file by file."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from pipelines.dataset.roles import SPLITS
from pipelines.events.attribution import DUPLICATE, filled_labels, label_windows
from pipelines.events.windows import Windows
from pipelines.past.past import past_windows
from pipelines.plans import collect
from pipelines.rows.duplicates import duplicates_of
from pipelines.rows.judged import GAP, REASON, SPLIT, joined_reasons, judged
from pipelines.rows.labels import label, weight_column
from pipelines.rows.quarantine import check_quarantine, reasons_of, write_quarantine, write_rows
from pipelines.rows.sampling import kept, sampling_weight
from pipelines.rows.young import add_maturity, maturity_weights, settled, too_young
from pipelines.work import ROW_ID, Work, file_batches
from recsys_moe.errors import RequestError
from recsys_moe.progress import progress
from recsys_moe.runners import Runner
from recsys_moe.spec import Column, ColumnType

_DROPPED = "\x1fdropped"
_REPEATED = "duplicate of an earlier row"


@dataclass(slots=True)
class Prepared:
    """How many rows came, where they went, and the span of time of the train split."""

    rows_in: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    train_window: tuple[int, int] | None = None

    def add(self, other: "Prepared") -> None:
        """Take in what became of other rows."""
        self.rows_in += other.rows_in
        self.rows += other.rows
        self.quarantined += other.quarantined
        self.dropped += other.dropped
        windows = [w for w in (self.train_window, other.train_window) if w is not None]
        if windows:
            self.train_window = min(w[0] for w in windows), max(w[1] for w in windows)

    @property
    def num_quarantined(self) -> int:
        """Rows in quarantine."""
        return sum(self.quarantined.values())


def prepared_files(output: Path, split: str) -> Path:
    """Return the folder of a split's prepared rows."""
    return output / "prepared" / split


def prepare(work: Work, runner: Runner, max_quarantine_share: float) -> Prepared:
    """Write `prepared/<split>/` and `quarantine/`; no row is lost between them.

    Raises:
        RequestError: The source is unreadable or empty, or a split has no rows.
        DataError: More than `max_quarantine_share` of the rows cannot be used.
    """
    name = work.dataset.name
    total = Prepared()
    num_rows = work.first_rows[-1]
    if not num_rows:
        raise RequestError(f"dataset {name!r}, source", wanted="rows", got="none")
    with progress("prepare", num_rows) as advance:
        for part in runner.map(_prepare_file, work, range(len(work.logs))):
            total.add(part)
            advance(part.rows_in)
    gone = total.num_quarantined + sum(total.dropped.values())
    if total.rows_in != num_rows or total.rows_in != sum(total.rows.values()) + gone:
        raise RuntimeError(f"{num_rows} rows came, {total} went")
    what = f"dataset {name!r}: wanted at most {max_quarantine_share:.2%} of the rows"
    folder = work.output / "quarantine"
    check_quarantine(what, total.quarantined, num_rows, max_quarantine_share, folder)
    for split in SPLITS:
        if not total.rows[split]:
            got = f"none of {num_rows:,}"
            raise RequestError(f"dataset {name!r}, split", wanted=f"rows in {split}", got=got)
    return total


def _prepare_file(work: Work, number: int) -> Prepared:
    """Write what becomes of the rows of one file."""
    done = Prepared()
    what = f"dataset {work.dataset.name!r}, source"
    known = [*label_windows(work), *past_windows(work)]
    for part, batch in enumerate(file_batches(what, work.dataset.source, work.rows(number))):
        rows = _complete(work, batch, known)
        name = f"part-{number:05}-{part:05}.parquet"
        sound = pl.col(REASON).is_null() & pl.col(_DROPPED).is_null()
        for split in SPLITS:
            here = rows.lazy().filter(sound & (pl.col(SPLIT) == split))
            mine = collect(here.select(_kept(work)))
            done.rows[split] += len(mine)
            if len(mine):
                write_rows(mine, prepared_files(work.output, split) / name)
                if split == "train" and work.dataset.split.by == "time":
                    time = mine[work.dataset.split.column or ""]
                    done.add(Prepared(train_window=(int(time.min()), int(time.max()))))  # type: ignore[arg-type]
        bad = rows.filter(pl.col(REASON).is_not_null())
        if len(bad):
            write_quarantine(bad, work.output / "quarantine" / name)
        done.rows_in += len(rows)
        done.quarantined += reasons_of(bad)
        done.dropped += Counter(rows[_DROPPED].drop_nulls().to_list())
    return done


def _complete(work: Work, batch: pl.DataFrame, known: list[Windows]) -> pl.DataFrame:
    """Add labels, the past, split and what speaks against each row of a batch."""
    first, last = int(batch[ROW_ID][0]), int(batch[ROW_ID][-1])
    again = pl.lit(False)
    for windows in known:
        found = windows.between(first, last)
        batch = batch.join(found, on=ROW_ID, how="left", maintain_order="left")
    if DUPLICATE in batch.columns:
        batch = batch.with_columns(filled_labels(work))
        again = pl.col(DUPLICATE).fill_null(False)
    elif work.dataset.unique_keys:
        again = pl.col(ROW_ID).is_in(duplicates_of(work, first, last).implode())
    batch = add_maturity(work, batch)
    repeated = pl.when(again).then(pl.lit(_REPEATED))
    rows = judged(work, batch.lazy()).with_columns(
        joined_reasons(pl.col(REASON), repeated).alias(REASON)
    )
    return collect(rows.with_columns(_dropped(work).alias(_DROPPED)))


def _dropped(work: Work) -> pl.Expr:
    """Say why a sound row is left out of the training set."""
    reasons = [pl.when(pl.col(GAP)).then(pl.lit("in the gap between splits")), *too_young(work)]
    sampling = work.dataset.sampling
    if sampling is not None:
        keys = work.dataset.keys
        stays = (pl.col(SPLIT) != "train") | kept(sampling, _labels(work)[sampling.task], keys)
        sampled = pl.lit(f"a negative of {sampling.task} not sampled")
        reasons.append(pl.when(~stays).then(sampled))
    return pl.when(pl.col(REASON).is_null()).then(pl.coalesce(reasons))


def _kept(work: Work) -> list[pl.Expr]:
    """Return the columns of prepared rows: numbers, keys, inputs, weight and labels."""
    dataset, labels = work.dataset, _labels(work)
    names = [ROW_ID, *dataset.keys, dataset.user, dataset.time]
    names += [*dataset.input_columns, dataset.row_weight]
    return [
        *(pl.col(name) for name in dict.fromkeys(name for name in names if name)),
        *(label.alias(task) for task, label in labels.items()),
        *(weight.alias(weight_column(task)) for task, weight in _weights(work, labels).items()),
    ]


def _labels(work: Work) -> dict[str, pl.Expr]:
    """Return the label of each task, null where it may still change and is not to be guessed."""
    labels = {}
    for task in work.dataset.tasks:
        kind: ColumnType = "float32" if task.events and task.events.value else "int64"
        column = Column(name=task.column, type=kind) if task.events else work.columns[task.column]
        labels[task.name] = settled(task, label(task, column))
    return labels


def _weights(work: Work, labels: dict[str, pl.Expr]) -> dict[str, pl.Expr]:
    """Return how much the labels of a task count, for the tasks where they do not all count 1."""
    weights = maturity_weights(work)
    sampling = work.dataset.sampling
    if sampling is not None and sampling.correct == "weight":
        drawn = sampling_weight(sampling, labels[sampling.task])
        in_train = pl.when(pl.col(SPLIT) == "train").then(drawn).otherwise(1.0)
        for task in work.dataset.tasks:
            if task.space == "all":
                weights[task.name] = weights.get(task.name, pl.lit(1.0)) * in_train
    return {task: weight.cast(pl.Float32) for task, weight in weights.items()}
