"""Columns, tables of codes and the kinds of feature that read them, as the spec lists them."""

import math
from dataclasses import dataclass
from typing import Literal

from recsys_moe.errors import SpecError
from recsys_moe.expression import columns_of, parse

PAD, MISSING_CODE, FIRST_OOV = 0, 1, 2
INT64_MISSING = -(2**63)
MOST_CODES = 2**31 - 16
"""As many codes as a table can have: an int32 holds each, with room to spare."""
PART_SEPARATOR, NULL_PART = "\x1f", "\0null"
"""What stands between the parts of a cross, and for one that is missing."""

ColumnType = Literal["string", "int64", "float32"]
Normalize = Literal["none", "l2"]
Transform = Literal["identity", "log1p", "sqrt"]
Keep = Literal["first", "last"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A raw input column, as `prepared/` holds it and the exported graph takes it.

    With a `dim` each value is a vector of that many float32 numbers, which is not called a list.
    """

    name: str
    type: ColumnType
    is_list: bool = False
    dim: int | None = None


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
    """A column, or a list column cut to its first or last `max_len` elements, as codes of a table.

    The elements kept stay in their order.
    """

    name: str
    column: str
    table: str
    max_len: int | None = None
    keep: Keep = "first"

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns it reads."""
        return (self.column,)

    @property
    def num_slots(self) -> int:
        """How many code slots the feature takes."""
        return self.max_len or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossed:
    """Several columns as one code: 2 + hash of their texts modulo the table's buckets.

    The texts are joined by `PART_SEPARATOR`, `NULL_PART` where one is missing; all missing is 1.
    """

    name: str
    columns: tuple[str, ...]
    table: str
    num_slots: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucketized:
    """A number as the right-closed interval `(a, b]` it lies in: codes 2, 3, …; missing is 1.

    An infinite number is missing, or lies in the first or last interval if `allow_inf`. The number
    is a column's or an expression's value.
    """

    name: str
    column: str | None = None
    expression: str | None = None
    table: str
    edges: tuple[float, ...]
    allow_inf: bool = False
    num_slots: Literal[1] = 1

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns it reads."""
        return _columns(self.name, self.column, self.expression)

    @property
    def source(self) -> str:
        """What its number comes from: the column, or the name that the expression's has inside."""
        return _source(self.column, self.expression)


@dataclass(frozen=True, slots=True, kw_only=True)
class Numeric:
    """A number as `clip((f(x) - center) * scale, ±clip)` in float64, f as `transform` says.

    One that is not finite, outside `[low, high]`, or negative under a logarithm or a root is
    missing: `fill`, which is on the scale of the result, stands in its place, and 1 in the flag
    that follows it if `missing_flag`. The number is a column's or an expression's value.
    """

    name: str
    column: str | None = None
    expression: str | None = None
    transform: Transform
    center: float
    scale: float
    clip: float
    missing_flag: bool
    low: float | None = None
    high: float | None = None
    fill: float = 0.0

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns it reads."""
        return _columns(self.name, self.column, self.expression)

    @property
    def source(self) -> str:
        """What its number comes from: the column, or the name that the expression's has inside."""
        return _source(self.column, self.expression)

    @property
    def num_numbers(self) -> int:
        """How many number columns the feature takes."""
        return 1 + self.missing_flag

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest number that is not missing."""
        least = -math.inf if self.transform == "identity" else 0.0
        low = least if self.low is None else max(self.low, least)
        return low, math.inf if self.high is None else self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """A vector column as it is, or divided by `max(length, 1e-12)`, in float64.

    A vector that is null or has an element that is null or not finite is missing as a whole: zeros
    in its place, and 1 in the flag that follows it if `missing_flag`.
    """

    name: str
    column: str
    dim: int
    normalize: Normalize
    missing_flag: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns it reads."""
        return (self.column,)

    @property
    def num_numbers(self) -> int:
        """How many number columns the feature takes."""
        return self.dim + self.missing_flag


NumberFeature = Numeric | Vector
CodeFeature = Categorical | Crossed | Bucketized
Feature = CodeFeature | NumberFeature
KINDS: dict[str, type[Feature]] = {
    "categorical": Categorical,
    "crossed": Crossed,
    "bucketized": Bucketized,
    "numeric": Numeric,
    "vector": Vector,
}


def _columns(name: str, column: str | None, expression: str | None) -> tuple[str, ...]:
    if (column is None) == (expression is None):
        got = "neither" if column is None else "both"
        raise SpecError(f"feature {name!r}", wanted="a column or an expression", got=got)
    return columns_of(parse(expression)) if expression is not None else (str(column),)


def _source(column: str | None, expression: str | None) -> str:
    return column if column is not None else f"\x1f{expression}"
