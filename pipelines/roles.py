"""What a dataset file can say, as frozen dataclasses: roles of columns, tasks, features, split.

`path` is where in the file a role stands, for messages.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.checked import Value

DECLARED_TYPES = ("string", "int64", "float32", "datetime")
SPLITS = ("train", "valid", "test")
ROW_ID = "row_id"
EVENTS = ("clicks", "conversions")
SIMULATED = "simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where raw rows are: files, folders or globs, relative to the dataset file's folder.

    `patterns` maps a split to its files; the key is "all" where another rule splits the rows, and
    `path` is where in the dataset file those stand; `separator` stands between the values of CSV.
    Where rows are impressions whose clicks and conversions lie in logs of their own, `events` are
    those logs and `join` is the column of the impressions that names one.
    """

    format: Literal["parquet", "csv"]
    patterns: dict[str, tuple[str, ...]]
    null_values: tuple[str, ...]
    types: dict[str, str]
    separator: str = ","
    path: str = "source.path"
    join: str | None = None
    events: tuple["EventLog", ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """A log of clicks or conversions: its files, which impression each is of, and when it came."""

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
class EventLabel:
    """A label made by joining: whether an impression has a click, or a conversion in time.

    `attribution_hours` is how long after the impression's first click a conversion counts; None
    for clicks, which count whenever they came.
    """

    log: str
    attribution_hours: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How rows become train, valid and test; what a rule does not use is empty or 0."""

    by: Literal["file", "column", "hash", "time"]
    column: str | None = None
    values: dict[str, tuple[Value, ...]]
    valid_share: float = 0.0
    test_share: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRole:
    """A task and the source column its label is made of, or the log whose events decide it.

    With `positive`, a listed value is 1 and any other 0; with `negative` too, a value in neither
    list is a fault of the row. Without both, the column holds 0 and 1 or truth values. A label
    of events has a column of no log, which joining adds.
    """

    path: str
    name: str
    column: str
    positive: tuple[Value, ...] | None
    negative: tuple[Value, ...] | None
    space: str
    weight: float
    events: EventLabel | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoricalRole:
    """A column whose values get codes from a vocabulary fitted on the train split."""

    path: str
    name: str
    column: str
    table: str
    max_len: int | None
    min_frequency: int
    num_oov: int
    max_size: int | None

    @property
    def settings(self) -> tuple[Any, ...]:
        """What all features of one table must agree on."""
        return ("categorical", self.min_frequency, self.num_oov, self.max_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class HashedRole:
    """A column whose values get codes by their hash alone."""

    path: str
    name: str
    column: str
    table: str
    max_len: int | None
    num_buckets: int

    @property
    def settings(self) -> tuple[Any, ...]:
        """What all features of one table must agree on."""
        return ("hashed", self.num_buckets)


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketizedRole:
    """A number as the interval between edges it lies in."""

    path: str
    name: str
    column: str
    edges: tuple[float, ...]

    @property
    def table(self) -> str:
        """The table of a bucketised feature is its own."""
        return self.name

    @property
    def settings(self) -> tuple[Any, ...]:
        """What all features of one table must agree on; nothing agrees with this one."""
        return ("bucketized", self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericRole:
    """A number, scaled by what the train split shows of it."""

    path: str
    name: str
    column: str
    log1p: bool
    clip: float
    missing_flag: bool


CodeRole = CategoricalRole | HashedRole | BucketizedRole
FeatureRole = CodeRole | NumericRole


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

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The columns that features read, each once, in the order of their first use."""
        return tuple(dict.fromkeys(feature.column for feature in self.features))

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
        for feature in self.features:
            yield f"{feature.path}.column", feature.column
