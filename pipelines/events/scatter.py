"""Impressions and events shuffled by key: first by impression, then by user or entity.

What a bucket's rows carry is what the stages after it need, and no more: number, time and split of
the row, the keys of histories and aggregates, what histories list, and labels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import polars as pl

from pipelines.dataset.task_roles import TaskRole
from pipelines.events.buckets import BucketWriter
from pipelines.rows.judged import GAP, REASON, SPLIT, judged
from pipelines.rows.labels import label
from pipelines.work import ROW_ID, Work, file_batches

IMPRESSIONS = "impressions"
_ROWS = 131_072  # of a few columns, at a time
ID, TIME, VALUE, TRAIN, SOUND = "id", "time", "value", "train", "sound"


@dataclass(slots=True)
class Totals:
    """Sum and number of known labels on train rows, by task; the last moments of train and all."""

    labels: dict[str, tuple[float, int]] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)

    def add(self, other: "Totals") -> None:
        """Take in those of other rows."""
        for task, (total, count) in other.labels.items():
            known = self.labels.get(task, (0.0, 0))
            self.labels[task] = known[0] + total, known[1] + count
        for which, moment in other.last.items():
            self.last[which] = max(moment, self.last.get(which, moment))

    def mean(self, task: str) -> float:
        """Return the mean of a task's known labels, 0 where there are none."""
        total, count = self.labels.get(task, (0.0, 0))
        return total / count if count else 0.0


def past_keys(work: Work) -> list[str]:
    """Return the columns by which histories and aggregates group rows."""
    dataset = work.dataset
    histories, aggregates = dataset.histories, dataset.aggregates
    return list(dict.fromkeys([*(h.of for h in histories), *(a.of for a in aggregates)]))


def past_tasks(work: Work) -> list[TaskRole]:
    """Return the tasks that histories and aggregates look at."""
    dataset = work.dataset
    named = {history.events for history in dataset.histories}
    named |= {aggregate.target or "" for aggregate in dataset.aggregates}
    return [task for task in dataset.tasks if task.name in named]


def label_of(task: str) -> str:
    """Return the column of a bucket that holds a task's label."""
    return f"\x1flabel of {task}"


def moment_of(task: str) -> str:
    """Return the column of a bucket that holds when a task's label became positive."""
    return f"\x1fmoment of {task}"


def carried(work: Work) -> list[str]:
    """Return the columns of the impressions that the past needs."""
    dataset, tasks = work.dataset, {task.name for task in work.dataset.tasks}
    listed = [column for history in dataset.histories for column in history.columns]
    targets = [a.target for a in dataset.aggregates if a.target and a.target not in tasks]
    return list(dict.fromkeys([*past_keys(work), *listed, *targets]))


def scatter_impressions(work: Work, numbers: tuple[int, ...]) -> Totals:
    """Write the rows of some files into the buckets of the next stage.

    With logs of events that is by impression, unusable rows too, whose events are not nobody's;
    without, it is by every key of the past.

    Returns:
        What the rows add up to, where they are not yet to meet their events.
    """
    dataset, name = work.dataset, f"{numbers[0]:05}"
    is_sound = pl.col(REASON).is_null()
    columns: list[pl.Expr] = [
        pl.col(ROW_ID),
        (pl.col(dataset.time) if dataset.time else pl.lit(0)).cast(pl.Int64).alias(TIME),
        (is_sound & (pl.col(SPLIT) == "train") & ~pl.col(GAP)).alias(TRAIN),
        *(pl.col(column) for column in carried(work)),
        *(
            label(task, work.columns[task.column]).cast(pl.Float64).alias(label_of(task.name))
            for task in past_tasks(work)
            if task.events is None
        ),
    ]
    what = f"dataset {dataset.name!r}, source"

    def batches(plan_of: Callable[[pl.LazyFrame], pl.LazyFrame]) -> Iterator[pl.DataFrame]:
        for number in numbers:
            plan = plan_of(judged(work, work.rows(number)))
            yield from file_batches(what, dataset.source, plan, _ROWS)

    if work.events:
        identified = pl.col(dataset.source.join or "").alias(ID)
        with BucketWriter(work.stage(IMPRESSIONS), name, work.num_buckets) as buckets:
            for batch in batches(lambda r: r.select(*columns, identified, is_sound.alias(SOUND))):
                buckets.add(batch, ID)
        return Totals()
    moments = [
        pl.when(pl.col(label_of(task.name)) > 0).then(TIME).alias(moment_of(task.name))
        for task in past_tasks(work)
    ]
    sound = batches(lambda r: r.filter(is_sound).select(columns).with_columns(moments))
    return scatter_past(work, name, sound)


def scatter_past(work: Work, name: str, rows: Iterator[pl.DataFrame]) -> Totals:
    """Write rows with their labels into the buckets of every key of the past."""
    totals = Totals()
    writers = [
        BucketWriter(work.stage(past_folder(place)), name, work.num_buckets)
        for place in range(len(past_keys(work)))
    ]
    for batch in rows:
        for key, writer in zip(past_keys(work), writers, strict=True):
            writer.add(batch, key)
        totals.add(_totals(work, batch))
    for writer in writers:
        writer.close()
    return totals


def _totals(work: Work, rows: pl.DataFrame) -> Totals:
    train = rows.filter(TRAIN)
    labels = {}
    for task in past_tasks(work):
        known = train[label_of(task.name)].drop_nulls()
        labels[task.name] = float(known.sum()), len(known)
    last = {
        which: int(moments.to_numpy().max())
        for which, moments in (
            ("train", train[TIME].drop_nulls()),
            ("daily", rows[TIME].drop_nulls()),
        )
        if len(moments)
    }
    return Totals(labels, last)


def past_folder(place: int) -> str:
    """Return the stage with the rows of the key at a place of `past_keys`."""
    return f"past-{place}"


def amount_of(work: Work, name: str) -> str | None:
    """Return the column of a log whose values a task adds up."""
    labels = [task.events for task in work.dataset.tasks if task.events]
    return next((label.value for label in labels if label.log == name and label.value), None)


def scatter_events(work: Work, unit: tuple[str, tuple[int, ...]]) -> None:
    """Write the rows of some files of a log of events into buckets by impression."""
    name, numbers = unit
    event = work.event(name)
    log = event.log
    time = pl.col(log.time) if log.time in event.columns else pl.lit(0)
    amount = amount_of(work, name)
    value = pl.col(amount) if amount else pl.lit(None)
    columns = (
        pl.col(ROW_ID),
        pl.col(log.join).alias(ID),
        time.cast(pl.Int64).alias(TIME),
        value.cast(pl.Float64).alias(VALUE),
    )
    folder = work.stage(f"events-{name}")
    with BucketWriter(folder, f"{numbers[0]:05}", work.num_buckets) as buckets:
        for number in numbers:
            plan = work.event_file(name, number).select(columns)
            for batch in file_batches(f"source.{name}", log.source, plan, _ROWS):
                buckets.add(batch, ID)
