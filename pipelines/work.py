"""What every stage of a build is told: the dataset, its files, and what was found out so far."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from pipelines.dataset.roles import Dataset, EventLog, Source
from pipelines.logs.logs import LogFile, readable, scan_file
from pipelines.plans import batches
from pipelines.rows.maturity import Delays
from recsys_moe.spec import Column

ROW_ID = "row_id"
FILE_ROWS = 65536


@dataclass(frozen=True, slots=True)
class Events:
    """A log of what followed impressions, opened: its files and the types of its columns."""

    log: EventLog
    files: list[LogFile]
    columns: dict[str, Column]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A build: what stages read and where they write. It can be sent to another process.

    `first_rows` has the number of the first row of each file of impressions, `event_rows` those of
    each log of events. `starts` are the first moments of valid and test, where the split is by
    time; `until` is up to when the logs of events are complete; `delays` how long the positives
    of a task take, where its young rows are weighted.
    """

    dataset: Dataset
    logs: tuple[LogFile, ...]
    columns: dict[str, Column]
    events: tuple[Events, ...]
    output: Path
    first_rows: tuple[int, ...]
    event_rows: dict[str, tuple[int, ...]]
    num_buckets: int
    starts: tuple[int, int] = (0, 0)
    until: int = 0
    delays: dict[str, Delays] = field(default_factory=dict)

    def stage(self, name: str) -> Path:
        """Return the folder of an intermediate result, removed when the build is done."""
        return self.output / "stage" / name

    def rows(self, number: int) -> pl.LazyFrame:
        """Return a file of impressions: `row_id`, typed columns, originals."""
        return numbered(
            self.dataset.source, self.logs[number], self.columns, self.first_rows[number]
        )

    def event(self, name: str) -> Events:
        """Return a log of events by name."""
        return next(event for event in self.events if event.log.name == name)

    def event_file(self, name: str, number: int) -> pl.LazyFrame:
        """Return a file of a log of events: `row_id`, typed columns, originals."""
        event = self.event(name)
        first = self.event_rows[name][number]
        return numbered(event.log.source, event.files[number], event.columns, first)


def numbered(source: Source, log: LogFile, columns: dict[str, Column], first: int) -> pl.LazyFrame:
    """Return a file's rows in order, numbered from `first`."""
    rows = scan_file(source, log, columns).with_row_index(ROW_ID, offset=first)
    return rows.with_columns(pl.col(ROW_ID).cast(pl.Int64))


def file_batches(
    what: str, source: Source, plan: pl.LazyFrame, rows: int | None = None
) -> Iterator[pl.DataFrame]:
    """Yield the rows of a plan over one raw file; what Polars cannot read is a wrong request.

    Raises:
        RequestError: The file does not hold what its first look promised.
    """
    with readable(what, source.format):
        stream = batches(plan, rows or FILE_ROWS)
    while True:
        with readable(what, source.format):
            batch = next(stream, None)
        if batch is None:
            return
        yield batch
