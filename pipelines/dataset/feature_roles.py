"""What a dataset file can say of features, and how it is read: one role for each feature."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pipelines.dataset.checked import Entry, Faults
from pipelines.dataset.number_options import Scaling, StandIn, bucketized_options, numeric_options
from recsys_moe.expression import ExpressionError, columns_of, parse
from recsys_moe.feature import FIRST_OOV, MOST_CODES, Keep, Normalize, Transform

MAX_DIM = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class _OneColumn:
    """What features of one column have in common."""

    path: str
    name: str
    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return (self.column,)

    @property
    def path_of_column(self) -> str:
        """Where in the dataset file its columns stand."""
        return f"{self.path}.column"


@dataclass(frozen=True, slots=True, kw_only=True)
class _OneNumber:
    """What features of one number have in common: it is a column's or an expression's."""

    path: str
    name: str
    column: str | None = None
    expression: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        if self.expression is not None:
            return columns_of(parse(self.expression))
        return (self.column or "",)

    @property
    def path_of_column(self) -> str:
        """Where in the dataset file its columns stand."""
        return f"{self.path}.column" if self.expression is None else f"{self.path}.expression"


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoricalRole(_OneColumn):
    """A column whose values get codes from a vocabulary fitted on the train split."""

    table: str
    max_len: int | None
    keep: Keep
    min_frequency: int
    num_oov: int
    max_size: int | None
    inherits: bool = False
    """Whether it says nothing of its table but the name: another feature says it."""

    @property
    def settings(self) -> tuple[Any, ...]:
        """What all features of one table must agree on."""
        return ("categorical", self.min_frequency, self.num_oov, self.max_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class HashedRole(_OneColumn):
    """A column whose values get codes by their hash alone."""

    table: str
    max_len: int | None
    keep: Keep
    num_buckets: int

    @property
    def settings(self) -> tuple[Any, ...]:
        """What all features of one table must agree on."""
        return ("hashed", self.num_buckets)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossedRole:
    """Several columns whose values together get one code, by their hash."""

    path: str
    name: str
    columns: tuple[str, ...]
    table: str
    num_buckets: int

    @property
    def path_of_column(self) -> str:
        """Where in the dataset file its columns stand."""
        return f"{self.path}.columns"

    @property
    def settings(self) -> tuple[Any, ...]:
        """What all features of one table must agree on."""
        return ("crossed", self.num_buckets)


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketizedRole(_OneNumber):
    """A number as the interval between edges it lies in, given or `num_buckets` to be fitted."""

    edges: tuple[float, ...]
    num_buckets: int | None
    allow_inf: bool

    @property
    def table(self) -> str:
        """The table of a bucketised feature is its own."""
        return self.name

    @property
    def settings(self) -> tuple[Any, ...]:
        """What all features of one table must agree on; nothing agrees with this one."""
        return ("bucketized", self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericRole(_OneNumber):
    """A number, scaled by what the train split shows of it.

    `missing` is what stands in where there is none; a number is of the column, not of its scale.
    """

    transform: Transform
    scaling: Scaling
    low: float | None
    high: float | None
    missing: StandIn | float
    clip: float
    missing_flag: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorRole(_OneColumn):
    """A vector of `dim` numbers that the source brings along."""

    dim: int
    normalize: Normalize
    missing_flag: bool


CodeRole = CategoricalRole | HashedRole | CrossedRole | BucketizedRole
FeatureRole = CodeRole | NumericRole | VectorRole


def read_features(entry: Entry) -> Iterator[FeatureRole]:
    """Yield the features of one entry: one per column where `columns` lists several."""
    kinds = ("categorical", "hashed", "crossed", "bucketized", "numeric", "vector")
    kind = entry.text("kind", choices=kinds)
    if kind == "crossed":
        yield _crossed(entry)
        return
    if kind in ("bucketized", "numeric") and entry.has("expression"):
        yield from _of_expression(kind, entry)
        return
    if entry.has("columns"):
        pairs = [(column, column) for column in entry.texts("columns")]
        for other in ("name", "column"):
            if entry.has(other):
                entry.faults.note(entry.at(other), wanted="either this or columns", got="both")
            entry.raw(other, None)
    else:
        column = entry.text("column", wanted="a column (or columns: several)")
        pairs = [(entry.text("name", column or None), column)]
        entry.raw("columns", None)
    options = _options(kind, entry)
    if kind in ("bucketized", "numeric"):
        entry.raw("expression", None)
    if kind:
        entry.close()
    for name, column in pairs:
        common: dict[str, Any] = {"path": entry.path, "name": name, "column": column}
        if kind in ("categorical", "hashed"):
            table = options["table"] or name
            role = CategoricalRole if kind == "categorical" else HashedRole
            yield role(**common, **{**options, "table": table})
        elif kind == "bucketized":
            yield BucketizedRole(**common, **options)
        elif kind == "numeric":
            yield NumericRole(**common, **options)
        elif kind == "vector":
            yield VectorRole(**common, **options)


def share_settings(features: Iterable[FeatureRole]) -> tuple[FeatureRole, ...]:
    """Give features that only name a table what another one says of it."""
    roles = tuple(features)
    said = {
        r.table: r for r in reversed(roles) if isinstance(r, CategoricalRole) and not r.inherits
    }

    def shared(role: FeatureRole) -> FeatureRole:
        if not isinstance(role, CategoricalRole) or not role.inherits or role.table not in said:
            return role
        first = said[role.table]
        return replace(
            role,
            min_frequency=first.min_frequency,
            num_oov=first.num_oov,
            max_size=first.max_size,
        )

    return tuple(shared(role) for role in roles)


def _of_expression(kind: str, entry: Entry) -> Iterator[BucketizedRole | NumericRole]:
    """Yield the feature of an expression, unless that is none."""
    name, text = entry.text("name"), entry.text("expression")
    for other in ("column", "columns"):
        if entry.has(other):
            entry.faults.note(entry.at(other), wanted="either this or expression", got="both")
        entry.raw(other, None)
    options = _options(kind, entry)
    if options.get("allow_inf"):
        wanted = "a column beside it (no result of an expression is infinite)"
        entry.faults.note(entry.at("allow_inf"), wanted=wanted, got="an expression")
    entry.close()
    common: dict[str, Any] = {"path": entry.path, "name": name, "expression": text}
    try:
        parse(text)
    except ExpressionError as error:
        if text:
            note_expression(entry.path, error, entry.faults)
        return
    role = BucketizedRole if kind == "bucketized" else NumericRole
    yield role(**common, **options)


def note_expression(path: str, error: ExpressionError, faults: Faults) -> None:
    """Note what is wrong with the expression of a feature."""
    faults.note(f"{path}.expression", wanted=error.wanted, got=error.got, choices=error.choices)


def _crossed(entry: Entry) -> CrossedRole:
    name, columns = entry.text("name"), entry.texts("columns")
    if columns and (len(columns) < 2 or len(set(columns)) < len(columns)):
        wanted = "two columns or more, each once"
        entry.faults.note(entry.at("columns"), wanted=wanted, got=repr(list(columns)))
    role = CrossedRole(
        path=entry.path,
        name=name,
        columns=columns,
        table=entry.optional_text("table") or name,
        num_buckets=entry.whole("num_buckets", least=1, most=MOST_CODES - FIRST_OOV),
    )
    entry.close()
    return role


def _options(kind: str, entry: Entry) -> dict[str, Any]:
    """Return what a kind of feature can be told beyond its name and column."""
    if kind in ("categorical", "hashed"):
        most = MOST_CODES - FIRST_OOV
        shared: dict[str, Any] = {
            "table": entry.optional_text("table"),
            "max_len": entry.optional_whole("max_len", least=1),
            "keep": entry.text("keep", "first", choices=("first", "last")),
        }
        if entry.has("keep") and shared["max_len"] is None:
            wanted = "max_len beside it (it is about lists)"
            entry.faults.note(entry.at("keep"), wanted=wanted, got="no max_len")
        if kind == "hashed":
            return shared | {"num_buckets": entry.whole("num_buckets", least=1, most=most)}
        return shared | {
            "min_frequency": entry.whole("min_frequency", 1, least=1),
            "num_oov": entry.whole("num_oov", 1, least=1, most=most),
            "max_size": entry.optional_whole("max_size", least=1),
            "inherits": entry.has("table")
            and not any(entry.has(key) for key in ("min_frequency", "num_oov", "max_size")),
        }
    if kind == "bucketized":
        return bucketized_options(entry)
    if kind == "numeric":
        return numeric_options(entry)
    if kind == "vector":
        return {
            "dim": entry.whole("dim", least=1, most=MAX_DIM),
            "normalize": entry.text("normalize", "none", choices=("none", "l2")),
            "missing_flag": entry.flag("missing_flag", False),
        }
    return {"table": None}
