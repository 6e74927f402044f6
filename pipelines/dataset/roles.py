"""What a dataset file can say, as frozen dataclasses: roles of columns, tasks, features, split.

`path` is where in the file a role stands, for messages.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipelines.dataset.checked import Value
from pipelines.dataset.feature_roles import FeatureRole
from pipelines.dataset.past_roles import AggregateRole, HistoryRole
from pipelines.dataset.task_roles import TaskRole

Format = Literal["parquet", "csv", "ndjson", "delta", "iceberg"]
FORMATS: tuple[Format, ...] = ("parquet", "csv", "ndjson", "delta", "iceberg")
TABLE_FORMATS: tuple[Format, ...] = ("delta", "iceberg")
DECLARED_TYPES = ("string", "int64", "float32", "datetime")
SPLITS = ("train", "valid", "test")
ROW_ID = "row_id"
SIMULATED = "simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where raw rows are: files, folders or globs, relative to the dataset file's folder.

    `patterns` maps a split to its files; the key is "all" where another rule splits the rows, and
    `path` is where in the dataset file those stand; `separator` stands between the values of CSV.
    Where rows are impressions whose clicks and conversions lie in logs of their own, `events` are
    those logs and `join` is the column of the impressions that names one.
    """

    format: Format
    patterns: dict[str, tuple[str, ...]]
    null_values: tuple[str, ...]
    types: dict[str, str]
    separator: str = ","
    snapshot: int | None = None
    """Of a table in Delta or Iceberg: the version to read; None: the latest."""
    same_columns: bool = False
    """Whether every file must have the columns of the first, those that no role names too."""
    allow_empty: bool = False
    """Whether files may have no rows."""
    max_list: int = 10_000
    """More elements than this in a list are a fault of the row."""
    path: str = "source.path"
    join: str | None = None
    events: tuple["EventLog", ...] = ()
    until: int | None = None
    """Up to when the logs of events are complete, microseconds UTC; None: their latest event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """A log of what followed impressions: its files, which impression each is of, and when."""

    name: str
    source: Source
    join: str
    time: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What the simulated logs are made from: impressions over all splits, seed, correlation."""

    rows: int
    seed: int
    correlation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How rows become train, valid and test; what a rule does not use is empty or 0."""

    by: Literal["file", "column", "hash", "time"]
    column: str | None = None
    values: dict[str, tuple[Value, ...]]
    valid_share: float = 0.0
    test_share: float = 0.0
    seed: int = 0
    starts: tuple[int, int] | None = None
    """By time with fixed bounds: the first moments of valid and of test, microseconds UTC."""
    gap_hours: float = 0.0
    """How much is left out at the start of valid and of test."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRule:
    """What must hold for a row to be used: an expression over its columns that is not 0."""

    path: str
    name: str
    expression: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Negatives of one task thinned out, in train only, by a seeded hash of the row's key.

    What it does to probabilities is undone by a shift of that task's logit in everything that
    predicts, or by the weight 1 / keep_rate of each negative kept.
    """

    task: str
    keep_rate: float
    correct: Literal["shift", "weight"]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """All that a dataset file says."""

    name: str
    source: Source
    split: Split
    keys: tuple[str, ...]
    user: str | None
    row_weight: str | None
    tasks: tuple[TaskRole, ...]
    features: tuple[FeatureRole, ...]
    simulation: Simulation | None = None
    time: str | None = None
    """When an impression was shown: what histories, aggregates and maturity go by."""
    histories: tuple[HistoryRole, ...] = ()
    aggregates: tuple[AggregateRole, ...] = ()
    sampling: Sampling | None = None
    unique_keys: bool = False
    rules: tuple[RowRule, ...] = ()

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The columns that features read, each once, in the order of their first use."""
        return tuple(dict.fromkeys(name for feature in self.features for name in feature.columns))

    @property
    def past_columns(self) -> tuple[str, ...]:
        """The columns that histories and aggregates add."""
        lists = [name for history in self.histories for name in history.outputs]
        return (*lists, *(aggregate.name for aggregate in self.aggregates))

    def roles(self) -> Iterator[tuple[str, str]]:
        """Yield the path of each mention of a source column, and the column."""
        for number, key in enumerate(self.keys):
            if key != ROW_ID:
                yield f"keys[{number}]", key
        for path, column in (("user", self.user), ("row_weight", self.row_weight)):
            if column:
                yield path, column
        if self.split.column:
            yield "split.column", self.split.column
        if self.source.join:
            yield "source.join", self.source.join
        for task in self.tasks:
            if task.events is None:
                yield f"{task.path}.label", task.column
        if self.time:
            yield "time", self.time
        for aggregate in self.aggregates:
            yield f"{aggregate.path}.of", aggregate.of
        for history in self.histories:
            yield f"{history.path}.of", history.of
            for number, column in enumerate(history.columns):
                yield f"{history.path}.columns[{number}]", column
        tasks = {task.name for task in self.tasks}
        for aggregate in self.aggregates:
            if aggregate.target and aggregate.target not in tasks:
                yield f"{aggregate.path}.target", aggregate.target
        for rule in self.rules:
            for column in rule.columns:
                yield f"{rule.path}.expression", column
        added = self.past_columns
        for feature in self.features:
            for column in feature.columns:
                if column not in added:
                    yield feature.path_of_column, column
