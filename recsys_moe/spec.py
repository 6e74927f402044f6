"""The feature spec: the one contract between the stages, frozen by the features command.

A code column holds, for each impression, the codes of every categorical, crossed or bucketised
feature, one slot for a scalar and `max_len` slots for a list; a number column holds the scaled
value of every numeric feature, or the numbers of a vector, and, where asked for, its missing flag.
Code layout, everywhere: 0 pad, 1 missing, 2 .. 1 + num_oov values outside the vocabulary (by
MurmurHash3), then the vocabulary by (count descending, value ascending). A hashed feature is one
whose vocabulary is empty.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from recsys_moe.entries import build, build_feature
from recsys_moe.errors import SpecError
from recsys_moe.feature import (
    FIRST_OOV,
    INT64_MISSING,
    KINDS,
    MISSING_CODE,
    MOST_CODES,
    PAD,
    Bucketized,
    Categorical,
    CodeFeature,
    Column,
    ColumnType,
    Crossed,
    Feature,
    NumberFeature,
    Numeric,
    Table,
    Vector,
)
from recsys_moe.files import digest, read_json, write_text

__all__ = [
    "FIRST_OOV",
    "INT64_MISSING",
    "LARGEST_LOG",
    "MISSING_CODE",
    "MOST_CODES",
    "PAD",
    "Bucketized",
    "Categorical",
    "CodeFeature",
    "Column",
    "ColumnType",
    "Crossed",
    "Feature",
    "FeatureSpec",
    "NumberFeature",
    "Numeric",
    "Table",
    "TargetTransform",
    "Task",
    "TaskKind",
    "Vector",
]

VERSION = 2
LARGEST_LOG = 80.0
"""The largest log(1 + y) that a regression predicts; above it float32 soon has no number."""

TaskKind = Literal["binary", "regression"]
TargetTransform = Literal["identity", "log1p"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A named prediction, the column with its label (or null) and the rows it is about.

    `space` is "all" or another task: rows outside that task's positives say nothing of this one.
    A binary label is 0 or 1. A regression learns `(f(y) - mean) * scale`, f the identity or
    log(1 + y), and predicts y. `keep_rate` is the share of its negatives that train kept: the true
    logit is the model's plus its logarithm.
    """

    name: str
    label: str
    space: str = "all"
    weight: float = 1.0
    kind: TaskKind = "binary"
    transform: TargetTransform = "identity"
    mean: float = 0.0
    scale: float = 1.0
    keep_rate: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """What the features command fitted, and all that later stages know of the data."""

    dataset: str
    columns: tuple[Column, ...]
    tables: tuple[Table, ...]
    features: tuple[Feature, ...]
    tasks: tuple[Task, ...]
    keys: tuple[str, ...] = ("row_id",)
    user: str | None = None
    row_weight: str | None = None
    train_rows: int
    train_window: tuple[int, int] | None = None
    """First and last timestamp of the train split, microseconds UTC."""

    def __post_init__(self) -> None:
        """Refuse a spec that contradicts itself."""
        columns = {column.name for column in self.columns}
        tables = {table.name for table in self.tables}
        for name, group in (
            ("columns", [column.name for column in self.columns]),
            ("tables", [table.name for table in self.tables]),
            ("features", [feature.name for feature in self.features]),
            ("tasks", [task.name for task in self.tasks]),
        ):
            twice = sorted({word for word in group if group.count(word) > 1})
            if twice:
                raise SpecError(f"{name}", wanted="each name once", got=f"{twice[0]!r} twice")
        for feature in self.features:
            for column in feature.columns:
                _refer(f"feature {feature.name!r}, column", column, columns)
            if not isinstance(feature, NumberFeature):
                _refer(f"feature {feature.name!r}, table", feature.table, tables)
        for table in self.tables:
            if not FIRST_OOV < table.num_codes <= MOST_CODES:
                raise SpecError(
                    f"table {table.name!r}, num_codes",
                    wanted=f"from 3 (pad, missing and one more) to {MOST_CODES}",
                    got=str(table.num_codes),
                )
        if not self.tasks:
            raise SpecError("tasks", wanted="at least one", got="none")
        for task in self.tasks:
            self._check_task(task)

    @property
    def code_features(self) -> tuple[CodeFeature, ...]:
        """The features with codes, in the order of their slots."""
        return tuple(f for f in self.features if not isinstance(f, NumberFeature))

    @property
    def numeric_features(self) -> tuple[NumberFeature, ...]:
        """The features with numbers, in the order of their number columns."""
        return tuple(f for f in self.features if isinstance(f, NumberFeature))

    @property
    def num_slots(self) -> int:
        """Width of the code matrix."""
        return sum(feature.num_slots for feature in self.code_features)

    @property
    def num_numbers(self) -> int:
        """Width of the number matrix."""
        return sum(feature.num_numbers for feature in self.numeric_features)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks' names, in order."""
        return tuple(task.name for task in self.tasks)

    @property
    def regressions(self) -> tuple[Task, ...]:
        """The tasks that predict an amount, in order."""
        return tuple(task for task in self.tasks if task.kind == "regression")

    def table(self, name: str) -> Table:
        """Return a table by name."""
        return next(table for table in self.tables if table.name == name)

    def column(self, name: str) -> Column:
        """Return a column by name."""
        return next(column for column in self.columns if column.name == name)

    def task(self, name: str) -> Task:
        """Return a task by name."""
        return next(task for task in self.tasks if task.name == name)

    def chain(self, name: str) -> tuple[str, ...]:
        """Return the tasks from the one about all rows down to a task: (click, conversion).

        Raises:
            SpecError: A space is unknown, or tasks are each other's space.
        """
        tasks = {task.name: task for task in self.tasks}
        chain = [name]
        while (space := tasks[chain[0]].space) != "all":
            if space not in tasks or space in chain:
                raise SpecError(
                    f"task {chain[0]!r}, space",
                    wanted="'all' or a task whose own space does not lead back here",
                    got=repr(space),
                    choices=["all", *tasks],
                )
            chain.insert(0, space)
        return tuple(chain)

    def outputs(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield each probability's name without its `p_`, and the tasks whose product it is.

        A binary task stands for itself, P(task given its space); a chained one also has its product
        over all rows, `click_and_conversion`. A regression is no probability and in no product.
        """
        binary = [task.name for task in self.tasks if task.kind == "binary"]
        for name in binary:
            yield name, (name,)
        for name in binary:
            chain = self.chain(name)
            if len(chain) > 1:
                yield "_and_".join(chain), chain

    @property
    def predictions(self) -> tuple[str, ...]:
        """The columns a model answers with: `p_<output>`, then `y_<task>` of each regression."""
        return (
            *(f"p_{name}" for name, _ in self.outputs()),
            *(f"y_{task.name}" for task in self.regressions),
        )

    @property
    def logits(self) -> tuple[str, ...]:
        """What a model answers with on request: `logit_<task>` of each binary task."""
        return tuple(f"logit_{task.name}" for task in self.tasks if task.kind == "binary")

    def _check_task(self, task: Task) -> None:
        """Refuse a task whose space says nothing of it, or with figures of another kind."""
        what = f"task {task.name!r}"
        for parent in self.chain(task.name)[:-1]:
            if self.task(parent).kind != "binary":
                wanted = "'all' or a binary task"
                raise SpecError(f"{what}, space", wanted=wanted, got=f"the regression {parent!r}")
        if not 0 < task.keep_rate <= 1 or (task.kind != "binary" and task.keep_rate != 1):
            wanted = "above 0 and at most 1, and 1 for a regression"
            raise SpecError(f"{what}, keep_rate", wanted=wanted, got=repr(task.keep_rate))
        if not 0 < task.scale < math.inf or not math.isfinite(task.mean):
            wanted = "a finite mean and a finite scale above 0"
            got = f"{task.mean!r} and {task.scale!r}"
            raise SpecError(f"{what}, mean and scale", wanted=wanted, got=got)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, features tagged with their kind."""
        kinds = {kind: name for name, kind in KINDS.items()}
        value = {"version": VERSION, **asdict(self)}
        value["features"] = [
            {"kind": kinds[type(feature)], **asdict(feature)} for feature in self.features
        ]
        return value

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Build a spec from plain values; unknown and missing entries are refused."""
        value = dict(value)
        version = value.pop("version", None)
        if version != VERSION:
            raise SpecError("feature spec, version", wanted=str(VERSION), got=str(version))
        for name, kind in (("columns", Column), ("tables", Table), ("tasks", Task)):
            value[name] = tuple(build(kind, entry, name) for entry in value.get(name, ()))
        value["features"] = tuple(build_feature(entry) for entry in value.get("features", ()))
        value["keys"] = tuple(value.get("keys", ()))
        if value.get("train_window") is not None:
            value["train_window"] = tuple(value["train_window"])
        return build(cls, value, "feature spec")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a spec written by `save`."""
        return cls.from_dict(read_json(path))

    def save(self, path: Path) -> None:
        """Write the spec as JSON, whole, the same bytes for the same spec."""
        write_text(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")

    @property
    def digest(self) -> str:
        """SHA-256 of the spec's canonical JSON; vocabularies are in it by their own digests."""
        return digest(json.loads(json.dumps(self.to_dict())))


def _refer(what: str, name: str, names: Collection[str]) -> None:
    if name not in names:
        raise SpecError(what, wanted="a name of the spec", got=repr(name), choices=names)
