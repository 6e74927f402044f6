"""The feature spec: the one contract between the stages, frozen by the features command.

A code column holds, for each impression, the codes of every categorical or bucketised feature, one
slot for a scalar and `max_len` slots for a list; a number column holds the scaled value of every
numeric feature and, where asked for, its missing flag. Code layout, everywhere: 0 pad, 1 missing,
2 .. 1 + num_oov values outside the vocabulary (by MurmurHash3), then the vocabulary by (count
descending, value ascending). A hashed feature is one whose vocabulary is empty.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from recsys_moe.errors import SpecError
from recsys_moe.files import digest, read_json, write_text

PAD, MISSING_CODE, FIRST_OOV = 0, 1, 2
INT64_MISSING = -(2**63)
VERSION = 1

T = TypeVar("T")
ColumnType = Literal["string", "int64", "float32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A raw input column, as `prepared/` holds it and the exported graph takes it."""

    name: str
    type: ColumnType
    is_list: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A space of codes that one or more features share, and so an embedding table.

    `vocabulary` names a parquet file (value, count, code), relative to the spec; None means that
    no value is listed: all of them are hashed, or the codes are buckets.
    """

    name: str
    num_codes: int
    num_oov: int
    vocabulary: str | None = None
    sha256: str | None = None

    @property
    def first_value(self) -> int:
        """The code of the most frequent value of the vocabulary."""
        return FIRST_OOV + self.num_oov


@dataclass(frozen=True, slots=True, kw_only=True)
class Categorical:
    """A column, or a list column cut to its first `max_len` elements, as codes of a table."""

    name: str
    column: str
    table: str
    max_len: int | None = None

    @property
    def num_slots(self) -> int:
        """How many code slots the feature takes."""
        return self.max_len or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucketized:
    """A number as the right-closed interval `(a, b]` it lies in: codes 2, 3, …; not finite is 1."""

    name: str
    column: str
    table: str
    edges: tuple[float, ...]
    num_slots: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Numeric:
    """A number as `clip((f(x) - mean) * scale, ±clip)`, f the identity or log(1 + x), in float64.

    Not finite, and negative under `log1p`, is missing: 0 in place of the value, and 1 in the flag
    that follows it if `missing_flag`.
    """

    name: str
    column: str
    log1p: bool
    mean: float
    scale: float
    clip: float
    missing_flag: bool

    @property
    def num_numbers(self) -> int:
        """How many number columns the feature takes."""
        return 1 + self.missing_flag


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A named prediction, the column with its label (0, 1 or null) and the rows it is about.

    `space` is "all" or another task: rows outside that task's positives say nothing of this one.
    """

    name: str
    label: str
    space: str = "all"
    weight: float = 1.0


Feature = Categorical | Bucketized | Numeric
_KINDS: dict[str, type[Feature]] = {
    "categorical": Categorical,
    "bucketized": Bucketized,
    "numeric": Numeric,
}


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
            _refer(f"feature {feature.name!r}, column", feature.column, columns)
            if not isinstance(feature, Numeric):
                _refer(f"feature {feature.name!r}, table", feature.table, tables)
        for table in self.tables:
            if table.num_codes < FIRST_OOV + 1:
                raise SpecError(
                    f"table {table.name!r}, num_codes",
                    wanted="at least 3 (pad, missing and one more)",
                    got=str(table.num_codes),
                )
        if not self.tasks:
            raise SpecError("tasks", wanted="at least one", got="none")
        for task in self.tasks:
            self.chain(task.name)

    @property
    def code_features(self) -> tuple[Categorical | Bucketized, ...]:
        """The features with codes, in the order of their slots."""
        return tuple(f for f in self.features if not isinstance(f, Numeric))

    @property
    def numeric_features(self) -> tuple[Numeric, ...]:
        """The numeric features, in the order of their number columns."""
        return tuple(f for f in self.features if isinstance(f, Numeric))

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

        A task stands for itself, P(task given its space); a chained task also has its product
        over all rows, `click_and_conversion`.
        """
        for task in self.tasks:
            yield task.name, (task.name,)
        for task in self.tasks:
            chain = self.chain(task.name)
            if len(chain) > 1:
                yield "_and_".join(chain), chain

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, features tagged with their kind."""
        kinds = {kind: name for name, kind in _KINDS.items()}
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
            value[name] = tuple(_build(kind, entry, name) for entry in value.get(name, ()))
        value["features"] = tuple(_feature(entry) for entry in value.get("features", ()))
        value["keys"] = tuple(value.get("keys", ()))
        if value.get("train_window") is not None:
            value["train_window"] = tuple(value["train_window"])
        return _build(cls, value, "feature spec")

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


def _feature(entry: Mapping[str, Any]) -> Feature:
    entry = dict(entry)
    kind = entry.pop("kind", None)
    if kind not in _KINDS:
        raise SpecError("feature, kind", wanted=" or ".join(_KINDS), got=repr(kind), choices=_KINDS)
    if kind == "bucketized":
        entry["edges"] = tuple(entry.get("edges", ()))
    return _build(_KINDS[kind], entry, f"feature {entry.get('name')!r}")


def _build(kind: type[T], entry: Mapping[str, Any], what: str) -> T:
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for key in entry.keys() - known.keys():
        raise SpecError(what, wanted="known entries", got=repr(key), choices=known)
    for key, field in known.items():
        if key not in entry and field.default is MISSING:
            raise SpecError(what, wanted=f"an entry {key!r}", got="none")
    return kind(**entry)
