"""Expressions over the columns of one row, such as `log1p(price) - log1p(shipping)`, as trees.

The language is Python's syntax for the operators and functions listed here, and nothing else of it:
text is parsed, never evaluated. All numbers are float64. A value is missing where a column's is
(null, not finite, or the smallest int64), where any operand is, and where a result is not finite;
only `coalesce`, `is_missing` and `if_else` look past a missing operand. A condition is true where
it is not 0, and a comparison is 0 or 1.
"""

import ast
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NoReturn

from recsys_moe.errors import SpecError

MAX_LENGTH, MAX_DEPTH = 500, 50


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number."""

    value: float
    at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Text:
    """A string that is not empty."""

    value: str
    at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Read:
    """The value of a column."""

    column: str
    at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Apply:
    """A function or operator by name, applied to its arguments."""

    name: str
    arguments: tuple["Expression", ...]
    at: int = field(default=0, compare=False)


Expression = Number | Text | Read | Apply
"""`at` is the place in the text of the first character, from 1."""

FUNCTIONS: dict[str, tuple[int, int]] = {
    "abs": (1, 1),
    "log": (1, 1),
    "log1p": (1, 1),
    "exp": (1, 1),
    "sqrt": (1, 1),
    "floor": (1, 1),
    "min": (2, MAX_LENGTH),
    "max": (2, MAX_LENGTH),
    "pow": (2, 2),
    "clip": (3, 3),
    "hour": (1, 1),
    "weekday": (1, 1),
    "days_between": (2, 2),
    "coalesce": (2, MAX_LENGTH),
    "is_missing": (1, 1),
    "if_else": (3, 3),
    "len": (1, 1),
}
"""What can be called, with the least and the most arguments."""

_BINARY: dict[type[ast.operator], str] = {
    ast.Add: "add",
    ast.Sub: "subtract",
    ast.Mult: "multiply",
    ast.Div: "divide",
    ast.Mod: "modulo",
}
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.In: "in",
    ast.NotIn: "in",
}
_INSTEAD: dict[type[ast.AST], str] = {
    ast.Attribute: 'col("a.b") for a column with such a name',
    ast.IfExp: "if_else(condition, a, b)",
    ast.Pow: "pow(a, b)",
    ast.FloorDiv: "floor(a / b)",
    ast.BitAnd: "`and`",
    ast.BitOr: "`or`",
    ast.Invert: "`not`",
    ast.Is: "== or is_missing(x)",
    ast.IsNot: "!= or is_missing(x)",
}
_ALLOWED = "numbers, columns, + - * / %, comparisons, `in`, and, or, not, or one of " + ", ".join(
    [*FUNCTIONS, "col"]
)


class ExpressionError(SpecError):
    """An expression that is not one of the language, or not one of these columns."""

    def __init__(
        self, text: str, *, at: int, wanted: str, got: str, choices: Iterable[str] = ()
    ) -> None:
        """Build the line, with the place in the text counted from 1."""
        self.choices = tuple(choices)
        super().__init__(
            f"expression {text!r}",
            wanted=f"at position {at} {wanted}",
            got=got,
            choices=self.choices,
        )


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """Parse an expression.

    Args:
        text: At most 500 characters, nested at most 50 deep; line ends count as blanks.

    Returns:
        The tree, in which names stand for columns of any type: `resolve` checks those.

    Raises:
        ExpressionError: With the place of what is not of the language.

    >>> parse("price / 2").arguments
    (Read(column='price', at=1), Number(value=2.0, at=9))
    """
    flat = " ".join(text.splitlines()).replace("\t", " ").strip()
    if len(flat) > MAX_LENGTH:
        got = f"{len(flat)} characters"
        raise ExpressionError(
            f"{flat[:40]}…", at=1, wanted=f"at most {MAX_LENGTH} characters", got=got
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what Python only warns of is a fault here
            body = ast.parse(flat, mode="eval").body
    except SyntaxError as error:
        at = max(1, error.offset or 1)
        got = "nothing" if not flat else f"{flat[at - 1 : at + 19]!r} ({error.msg})"
        raise ExpressionError(flat, at=at, wanted="an expression", got=got) from None
    except (ValueError, RecursionError, MemoryError):  # NUL before Python 3.12; too deep
        raise ExpressionError(flat, at=1, wanted="an expression", got="another text") from None
    return _Parser(flat).tree(body, 1)


class _Parser:
    """Turns Python's tree into ours, refusing what the language has not."""

    def __init__(self, text: str) -> None:
        self.text, self.encoded = text, text.encode("utf-8", "replace")

    def tree(self, node: ast.expr, depth: int) -> Expression:
        at = self.at(node)
        if depth > MAX_DEPTH:
            self.fail(at, f"at most {MAX_DEPTH} levels", "more")
        match node:
            case ast.Constant(value=bool() | None):
                self.fail(at, _ALLOWED, repr(node.value))
            case ast.Constant(value=int() | float() as value):
                return Number(self.number(value, at), at)
            case ast.Constant(value=str() as value):
                return Text(self.string(value, at), at)
            case ast.Name():
                return Read(self.source(node), at)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return Number(-self.number(value, at), at)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return Apply("negative", (self.tree(operand, depth + 1),), at)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return Apply("not", (self.tree(operand, depth + 1),), at)
            case ast.BoolOp(op=op, values=values):
                name = "and" if isinstance(op, ast.And) else "or"
                return Apply(name, self.trees(values, depth), at)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return Apply(_BINARY[type(op)], self.trees([left, right], depth), at)
            case ast.Compare():
                return self.comparison(node, at, depth)
            case ast.Call():
                return self.call(node, at, depth)
        known = getattr(node, "op", node)
        instead = _INSTEAD.get(type(known), _ALLOWED)
        self.fail(at, instead, repr(self.source(node)))

    def trees(self, nodes: Iterable[ast.expr], depth: int) -> tuple[Expression, ...]:
        return tuple(self.tree(node, depth + 1) for node in nodes)

    def comparison(self, node: ast.Compare, at: int, depth: int) -> Expression:
        operator, other = node.ops[0], node.comparators[0]
        if len(node.ops) > 1:
            wanted = "one comparison, or several joined by `and`"
            self.fail(at, wanted, repr(self.source(node)))
        if type(operator) not in _COMPARISONS:
            self.fail(at, _INSTEAD[type(operator)], repr(self.source(node)))
        if not isinstance(operator, ast.In | ast.NotIn):
            return Apply(_COMPARISONS[type(operator)], self.trees([node.left, other], depth), at)
        if not isinstance(other, ast.Tuple | ast.List) or not other.elts:
            wanted = "values in brackets after `in`, such as (1, 2) or (1,)"
            self.fail(self.at(other), wanted, repr(self.source(other)))
        found = Apply("in", self.trees([node.left, *other.elts], depth), at)
        for value in found.arguments[1:]:
            if not isinstance(value, Number | Text):
                self.fail(value.at, "a number or a string in the list of `in`", "another thing")
        return Apply("not", (found,), at) if isinstance(operator, ast.NotIn) else found

    def call(self, node: ast.Call, at: int, depth: int) -> Expression:
        name = self.source(node.func)
        if node.keywords or any(isinstance(value, ast.Starred) for value in node.args):
            self.fail(at, "arguments one after the other", repr(self.source(node)))
        if name == "col":
            match node.args:
                case [ast.Constant(value=str(column))] if column:
                    return Read(column, at)
            self.fail(at, 'one name in quotes, col("name")', repr(self.source(node)))
        if name not in FUNCTIONS:
            self.fail(at, "a function", repr(name), [*FUNCTIONS, "col"])
        least, most = FUNCTIONS[name]
        if not least <= len(node.args) <= most:
            wanted = f"{least}{'' if least == most else ' or more'} of {name}"
            self.fail(at, f"arguments: {wanted}", str(len(node.args)))
        return Apply(name, self.trees(node.args, depth), at)

    def number(self, value: float, at: int) -> float:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self.fail(at, "a number that float64 holds", "a larger one")
        return number

    def string(self, value: str, at: int) -> str:
        if not value:
            self.fail(at, "a string that is not empty (that is missing: is_missing(x))", "''")
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            self.fail(at, "a string of whole characters", ascii(value))
        return value

    def source(self, node: ast.expr) -> str:
        """Return the text of a node: Python's own names are normalised, columns' are not."""
        return self.encoded[node.col_offset : node.end_col_offset].decode()

    def at(self, node: ast.expr) -> int:
        return len(self.encoded[: node.col_offset].decode()) + 1

    def fail(self, at: int, wanted: str, got: str, choices: Iterable[str] = ()) -> NoReturn:
        raise ExpressionError(self.text, at=at, wanted=wanted, got=got, choices=choices)


def columns_of(tree: Expression) -> tuple[str, ...]:
    """Return the columns that an expression reads, each once, in the order of their first use."""
    return tuple(dict.fromkeys(node.column for node in nodes_of(tree) if isinstance(node, Read)))


def lists_of(tree: Expression) -> tuple[str, ...]:
    """Return the list columns whose lengths an expression reads."""
    counts = [node for node in nodes_of(tree) if isinstance(node, Apply) and node.name == "len"]
    return tuple(name for count in counts for name in columns_of(count))


def nodes_of(tree: Expression) -> Iterator[Expression]:
    """Yield a tree's nodes, each before what is below it."""
    yield tree
    if isinstance(tree, Apply):
        for argument in tree.arguments:
            yield from nodes_of(argument)
