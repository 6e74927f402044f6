"""Expressions a third time, in plain Python on one row, read off the documentation.

It shares the parser with the pipeline and the graph, but neither the check of types nor the
spelling in primitives: hours come from whole numbers, missing is None, and errors are missing.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from recsys_moe.expression import Apply, Expression, Number, Read, Text
from recsys_moe.feature import INT64_MISSING

Value = float | str | None

_HOUR, _DAY = 3_600_000_000, 86_400_000_000


def evaluate(tree: Expression, row: Mapping[str, Any]) -> float | None:
    """Return the value of an expression in one row, None where it is missing.

    Args:
        tree: A parsed expression that suits the row's columns.
        row: A raw value, list or None for each column.
    """
    value = _value(tree, row)
    if isinstance(value, str):
        raise TypeError(f"a string is no value of an expression: {value!r}")
    return value


def _value(tree: Expression, row: Mapping[str, Any]) -> Value:
    match tree:
        case Number(value) | Text(value):
            return value
        case Read(name):
            return _plain(row[name])
        case Apply("len", (Read(name),)):
            return float(len(row[name] or []))
        case Apply("if_else", (condition, chosen, other)):
            decided = _value(condition, row)
            return None if decided is None else _value(chosen if decided else other, row)
    values = [_value(argument, row) for argument in tree.arguments]
    if tree.name == "is_missing":
        return float(values[0] is None)
    if tree.name == "coalesce":
        return next((value for value in values if value is not None), None)
    if None in values:
        return None
    try:
        result = float(_FUNCTIONS[tree.name](*values))
    except (ArithmeticError, ValueError):
        return None
    return result if math.isfinite(result) else None


def _plain(value: Any) -> Value:
    if value is None or (isinstance(value, int) and value == INT64_MISSING):
        return None
    if isinstance(value, str):
        return value or None
    return float(value) if math.isfinite(value) else None


def _microseconds(time: float) -> int:
    if abs(time) >= 2**63:
        raise ValueError(time)
    return math.floor(time)


_FUNCTIONS: dict[str, Callable[..., float]] = {
    "negative": lambda x: -x,
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "modulo": lambda a, b: a - b * math.floor(a / b),
    "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b,
    "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b,
    "equal": lambda a, b: a == b,
    "not_equal": lambda a, b: a != b,
    "in": lambda value, *choices: value in choices,
    "and": lambda *values: all(values),
    "or": lambda *values: any(values),
    "not": lambda x: not x,
    "abs": abs,
    "log": math.log,
    "log1p": math.log1p,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "floor": math.floor,
    "min": min,
    "max": max,
    "pow": math.pow,
    "clip": lambda x, low, high: min(max(x, low), high),
    "hour": lambda time: _microseconds(time) // _HOUR % 24,
    "weekday": lambda time: (_microseconds(time) // _DAY + 3) % 7,
    "days_between": lambda start, end: (end - start) / _DAY,
}
