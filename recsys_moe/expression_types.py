"""An expression held against the columns it reads, and spelled in the few operations of engines."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NoReturn

from recsys_moe.expression import (
    Apply,
    Expression,
    ExpressionError,
    Number,
    Read,
    Text,
    columns_of,
    parse,
)
from recsys_moe.feature import Column

Kind = Literal["number", "string", "list", "vector"]

PRIMITIVES = (
    *("add", "subtract", "multiply", "divide", "modulo", "less", "less_equal", "equal", "in"),
    *("and", "or", "abs", "log", "log1p", "exp", "sqrt", "floor", "min", "max", "pow", "moment"),
    *("coalesce", "is_missing", "if_else", "len", "text_equal", "text_in", "text_is_missing"),
)
"""What is left after `resolve`. `moment(t)` is floor(t), missing where no int64 holds it."""

_OF_TIMES = ("hour", "weekday", "days_between")
_HOUR, _DAY = Number(3_600_000_000.0), Number(86_400_000_000.0)


def resolve(text: str, columns: Iterable[Column]) -> Expression:
    """Parse an expression, check it against columns and spell it in primitives.

    Args:
        text: The expression.
        columns: At least the columns that it reads, with their types.

    Returns:
        A tree of `PRIMITIVES`, numbers, strings and reads, whose value is a number.

    Raises:
        ExpressionError: It is none, names a column that is not there, reads none at all, or
            treats a string or list as a number.
    """
    resolver = _Resolver(text, {column.name: column for column in columns})
    tree = parse(text)
    if not columns_of(tree):
        resolver.fail(tree, "a column somewhere", "none", resolver.columns)
    return resolver.number(tree)


class _Resolver:
    def __init__(self, text: str, columns: Mapping[str, Column]) -> None:
        self.text, self.columns = text, columns

    def number(self, tree: Expression) -> Expression:
        """Return a tree that must be a number, in primitives."""
        match tree:
            case Number():
                return tree
            case Apply():
                return self.applied(tree)
        if (kind := self.kind(tree)) != "number":
            self.fail(tree, "a number", f"a {kind}, {_shown(tree)}")
        return tree

    def numbers(self, trees: Sequence[Expression]) -> tuple[Expression, ...]:
        return tuple(self.number(tree) for tree in trees)

    def kind(self, tree: Expression) -> Kind:
        """Return what a tree is; every operation gives a number."""
        match tree:
            case Text():
                return "string"
            case Read(name):
                if name not in self.columns:
                    self.fail(tree, "a column", repr(name), self.columns)
                column = self.columns[name]
                if column.dim is not None:
                    return "vector"
                if column.is_list:
                    return "list"
                return "string" if column.type == "string" else "number"
        return "number"

    def applied(self, tree: Apply) -> Expression:
        """Return an operation in primitives."""
        name, arguments = tree.name, tree.arguments
        if name == "len":
            if self.kind(arguments[0]) != "list":
                self.fail(arguments[0], "a column of lists in len", _shown(arguments[0]))
            return tree
        if name == "is_missing" and self.kind(arguments[0]) == "string":
            if isinstance(arguments[0], Text):
                self.fail(arguments[0], "a column", _shown(arguments[0]))
            return Apply("text_is_missing", arguments)
        if name in ("equal", "not_equal", "in") and self.of_strings(name, arguments):
            found = Apply("text_in" if name == "in" else "text_equal", arguments)
            return _negated(found) if name == "not_equal" else found
        numbers = self.numbers(arguments)
        for argument in numbers if name in _OF_TIMES else ():
            if isinstance(argument, Read) and self.columns[argument.column].type == "float32":
                self.fail(argument, f"int64 microseconds in {name}", f"floats, {_shown(argument)}")
        return _spelled(name, numbers)

    def of_strings(self, name: str, arguments: Sequence[Expression]) -> bool:
        """Say whether a comparison is one of strings, in which case all of them must be."""
        kinds = [self.kind(argument) for argument in arguments]
        if "string" not in kinds:
            return False
        for argument, kind in zip(arguments, kinds, strict=True):
            if kind != "string":
                self.fail(argument, "a string, as what it is compared with", f"a {kind}")
        if all(isinstance(argument, Text) for argument in arguments):
            self.fail(arguments[0], "a column", _shown(arguments[0]))
        return True

    def fail(
        self, tree: Expression, wanted: str, got: str, choices: Iterable[str] = ()
    ) -> NoReturn:
        raise ExpressionError(self.text, at=tree.at, wanted=wanted, got=got, choices=choices)


def _spelled(name: str, arguments: tuple[Expression, ...]) -> Expression:
    """Return an operation on numbers in primitives, each argument used once."""
    match name, arguments:
        case "negative", (x,):
            return Apply("subtract", (Number(0.0), x))
        case "not", (x,):
            return _negated(x)
        case "not_equal", _:
            return _negated(Apply("equal", arguments))
        case ("greater", (a, b)) | ("greater_equal", (a, b)):
            return Apply(name.replace("greater", "less"), (b, a))
        case "clip", (x, low, high):
            return Apply("min", (Apply("max", (x, low)), high))
        case "hour", (time,):
            of_day = Apply("modulo", (Apply("moment", (time,)), _DAY))
            return Apply("floor", (Apply("divide", (of_day, _HOUR)),))
        case "weekday", (time,):  # 1970-01-01 was a Thursday
            day = Apply("floor", (Apply("divide", (Apply("moment", (time,)), _DAY)),))
            return Apply("modulo", (Apply("add", (day, Number(3.0))), Number(7.0)))
        case "days_between", (start, end):
            return Apply("divide", (Apply("subtract", (end, start)), _DAY))
    return Apply(name, arguments)


def _negated(tree: Expression) -> Expression:
    return Apply("equal", (tree, Number(0.0)))


def _shown(tree: Expression) -> str:
    match tree:
        case Read(name):
            return repr(name)
        case Text(value):
            return repr(value)
    return "a number"
