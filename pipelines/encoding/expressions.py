"""An expression's tree as a Polars expression; `export.expressions` is the same in ONNX.

While it is computed, null, NaN and the infinities are missing alike, as most operations carry them
on; those that would not (a comparison, the minimum, a division by infinity) look first. Arguments
become fields of a struct wherever an operation uses one twice: Polars would compute what is written
twice twice over, and 2^n times in an expression n deep. It also divides by a scalar through its
rounded reciprocal, and only a field is never a scalar.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import polars as pl

from recsys_moe.expression import Apply, Expression, Number, Read, Text
from recsys_moe.expression_types import resolve
from recsys_moe.feature import INT64_MISSING, Bucketized, Column, Feature, Numeric

Rows = TypeVar("Rows", pl.DataFrame, pl.LazyFrame)

_MISSING = pl.lit(None, pl.Float64)
_INT64_END = 2.0**63


def expression(text: str, columns: Iterable[Column]) -> pl.Expr:
    """Compile an expression over columns of one frame.

    Args:
        text: The expression.
        columns: At least the columns that it reads, of the types that the frame has.

    Returns:
        Float64, finite or null, one value a row; it streams, row by row.

    Raises:
        ExpressionError: The text is no expression over these columns.
    """
    types = {column.name: column for column in columns}
    return _sound(_compiled(resolve(text, types.values()), types))


def with_expressions(rows: Rows, features: Iterable[Feature], columns: Iterable[Column]) -> Rows:
    """Add a column for each expression that features read, under the name of their `source`."""
    known, added = tuple(columns), {}
    for feature in features:
        if isinstance(feature, Numeric | Bucketized) and feature.expression is not None:
            added[feature.source] = expression(feature.expression, known)
    return rows.with_columns(**added) if added else rows


def _compiled(tree: Expression, columns: Mapping[str, Column]) -> pl.Expr:
    match tree:
        case Number(value) | Text(value):
            return pl.lit(value)
        case Read(name):
            return _read(columns[name])
        case Apply("len", (Read(name),)):
            return pl.col(name).list.len().fill_null(0).cast(pl.Float64)
        case Apply(name, arguments):
            operands = [_compiled(argument, columns) for argument in arguments]
            return _OPERATIONS[name](operands)
    raise TypeError(tree)


def _read(column: Column) -> pl.Expr:
    value, marker = pl.col(column.name), {"string": "", "int64": INT64_MISSING}.get(column.type)
    if marker is not None:
        value = pl.when(value != marker).then(value)
    return value if column.type == "string" else value.cast(pl.Float64)


def _with_fields(operands: list[pl.Expr], function: Callable[..., pl.Expr]) -> pl.Expr:
    """Return a function of operands, each of them computed once however often it is used."""
    names = [str(number) for number in range(len(operands))]
    fields = pl.struct(operand.alias(name) for operand, name in zip(operands, names, strict=True))
    result = function(*(pl.field(name) for name in names)).alias("result")
    return fields.struct.with_fields(result).struct.field("result")


def _sound(value: pl.Expr) -> pl.Expr:
    return _with_fields([value], lambda x: pl.when(x.is_finite()).then(x))


def _guarded(function: Callable[..., pl.Expr]) -> Callable[[list[pl.Expr]], pl.Expr]:
    """Make a function of numbers null where one of them is missing."""

    def guarded(*operands: pl.Expr) -> pl.Expr:
        known = pl.all_horizontal(operand.is_finite() for operand in operands)
        return pl.when(known).then(function(*operands))

    return lambda operands: _with_fields(operands, guarded)


def _true(condition: pl.Expr) -> pl.Expr:
    return condition.cast(pl.Float64)


def _in(value: pl.Expr, *choices: pl.Expr) -> pl.Expr:
    return _true(pl.any_horizontal(value == choice for choice in choices))


def _choice(condition: pl.Expr, chosen: pl.Expr, other: pl.Expr) -> pl.Expr:
    return pl.when(condition.is_finite()).then(
        pl.when(condition != 0).then(chosen).otherwise(other)
    )


def _coalesced(*values: pl.Expr) -> pl.Expr:
    return pl.coalesce([*(pl.when(value.is_finite()).then(value) for value in values), _MISSING])


_OPERATIONS: dict[str, Callable[[list[pl.Expr]], pl.Expr]] = {
    "add": lambda o: o[0] + o[1],
    "subtract": lambda o: o[0] - o[1],
    "multiply": lambda o: o[0] * o[1],
    "divide": _guarded(lambda a, b: a / b),
    "modulo": _guarded(lambda a, b: a - b * (a / b).floor()),
    "less": _guarded(lambda a, b: _true(a < b)),
    "less_equal": _guarded(lambda a, b: _true(a <= b)),
    "equal": _guarded(lambda a, b: _true(a == b)),
    "in": _guarded(_in),
    "and": _guarded(lambda *o: _true(pl.all_horizontal(x != 0 for x in o))),
    "or": _guarded(lambda *o: _true(pl.any_horizontal(x != 0 for x in o))),
    "abs": lambda o: o[0].abs(),
    "log": lambda o: o[0].log(math.e),
    "log1p": lambda o: o[0].log1p(),
    "exp": _guarded(lambda x: x.exp()),
    "sqrt": lambda o: o[0].sqrt(),
    "floor": lambda o: o[0].floor(),
    "min": _guarded(lambda *o: pl.min_horizontal(*o)),
    "max": _guarded(lambda *o: pl.max_horizontal(*o)),
    "pow": _guarded(lambda a, b: a.pow(b)),
    "moment": lambda o: _with_fields(o, lambda t: pl.when(t.abs() < _INT64_END).then(t.floor())),
    "coalesce": lambda o: _with_fields(o, _coalesced),
    "is_missing": lambda o: _true(~o[0].is_finite().fill_null(value=False)),
    "if_else": lambda o: _with_fields(o, _choice),
    "text_equal": lambda o: _true(o[0] == o[1]),
    "text_in": lambda o: _with_fields(
        o, lambda x, *rest: pl.when(x.is_not_null()).then(_in(x, *rest))
    ),
    "text_is_missing": lambda o: _true(o[0].is_null()),
}
