"""An expression's tree as ONNX nodes; `pipelines.encoding.expressions` is the same in Polars.

Shapes: B batch. A value is float64 [B] (a constant is a scalar), and one that is not finite is
missing: most operations carry that on, and those that would not (a comparison, the minimum, a
division by infinity) look first.
"""

import math
from collections.abc import Iterable, Sequence
from functools import reduce

import numpy as np
import onnx

from export.columns import input_names
from export.graph import GraphBuilder
from recsys_moe.expression import Apply, Expression, Number, Read, Text
from recsys_moe.expression_types import resolve
from recsys_moe.feature import INT64_MISSING, Column

DOUBLE = int(onnx.TensorProto.DOUBLE)
_CARRYING = {
    **{"abs": "Abs", "log": "Log", "sqrt": "Sqrt", "floor": "Floor"},
    **{"add": "Add", "subtract": "Sub", "multiply": "Mul"},
}
_GUARDED = {"divide": "Div", "exp": "Exp", "pow": "Pow", "min": "Min", "max": "Max"}
_COMPARISONS = {"less": "Less", "less_equal": "LessOrEqual", "equal": "Equal"}
_INT64_END = 2.0**63


class ExpressionNodes:
    """Appends the nodes of expressions to a graph; what several read or ask is there once."""

    def __init__(self, graph: GraphBuilder, columns: Iterable[Column]) -> None:
        """Take the graph and the columns that are its inputs, with their types."""
        self.graph = graph
        self.columns = {column.name: column for column in columns}
        self._values: dict[Expression, str] = {}
        self._finite: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        """Append an expression's nodes and return its value, float64 [B], NaN where missing.

        Raises:
            ExpressionError: The text is no expression over the columns.
        """
        value = self._value(resolve(text, self.columns.values()))
        return self.graph.add("Where", self._is_finite(value), value, self._nan)

    def _value(self, tree: Expression) -> str:
        """Return the value of a tree; equal trees have one."""
        if tree not in self._values:
            self._values[tree] = self._new_value(tree)
        return self._values[tree]

    def _new_value(self, tree: Expression) -> str:
        match tree:
            case Number(number):
                return self.graph.constant(number, np.float64)
            case Read(name):
                return self._read(self.columns[name])
            case Apply("len", (Read(name),)):
                return self._double(input_names(self.columns[name])[1])
            case Apply("text_is_missing", (Read(name),)):
                return self._look_up(name, {"": 1.0})
            case Apply("text_in" | "text_equal", arguments):
                return self._of_strings(arguments)
            case Apply(name, arguments):
                return self._of_numbers(name, [self._value(argument) for argument in arguments])
        raise TypeError(tree)

    def _read(self, column: Column) -> str:
        """Return a column of numbers as float64."""
        value = self._double(column.name)
        if column.type == "float32":
            return value
        marker = self.graph.constant(INT64_MISSING, np.int64)
        return self.graph.add(
            "Where", self.graph.add("Equal", column.name, marker), self._nan, value
        )

    @property
    def _nan(self) -> str:
        return self.graph.constant(np.nan, np.float64)

    def _double(self, value: str) -> str:
        return self.graph.add("Cast", value, to=DOUBLE)

    def _is_finite(self, value: str) -> str:
        """Return whether a value is not missing, bool."""
        if value not in self._finite:
            infinity = self.graph.constant(np.inf, np.float64)
            size = self.graph.add("Abs", value)
            self._finite[value] = self.graph.add("Less", size, infinity)
        return self._finite[value]

    def _known(self, values: Sequence[str], result: str) -> str:
        """Return a result where all values are finite and NaN elsewhere."""
        known = self._joined("And", [self._is_finite(value) for value in values])
        return self.graph.add("Where", known, result, self._nan)

    def _joined(self, operator: str, values: Sequence[str]) -> str:
        return reduce(lambda a, b: self.graph.add(operator, a, b), values)

    def _true(self, value: str) -> str:
        """Return whether a number is not 0, bool."""
        zero = self.graph.constant(0.0, np.float64)
        return self.graph.add("Not", self.graph.add("Equal", value, zero))

    def _look_up(self, column: str, values: dict[str, float]) -> str:
        """Return what each string of a column stands for, 0 for any other."""
        found = self.graph.add(
            "LabelEncoder",
            column,
            domain="ai.onnx.ml",
            keys_strings=list(values),
            values_floats=list(values.values()),
            default_float=0.0,
        )
        return self._double(found)

    def _of_strings(self, arguments: Sequence[Expression]) -> str:
        """Return whether two columns are equal, or a column is one of some strings."""
        names = [argument.column for argument in arguments if isinstance(argument, Read)]
        texts = [argument.value for argument in arguments if isinstance(argument, Text)]
        missing = {"": math.nan}
        if texts:
            return self._look_up(names[0], missing | dict.fromkeys(texts, 1.0))
        equal = self._double(self.graph.add("Equal", *names))
        return self._joined("Add", [equal, *(self._look_up(name, missing) for name in names)])

    def _of_numbers(self, name: str, values: Sequence[str]) -> str:
        """Return the result of a primitive on numbers."""
        graph = self.graph
        if name in _CARRYING:
            return graph.add(_CARRYING[name], *values)
        match name:
            case "log1p":
                return log1p(graph, values[0])
            case "moment":
                size, end = graph.add("Abs", values[0]), graph.constant(_INT64_END, np.float64)
                return graph.add(
                    "Where", graph.add("Less", size, end), graph.add("Floor", values[0]), self._nan
                )
            case "is_missing":
                return self._double(graph.add("Not", self._is_finite(values[0])))
            case "coalesce":
                return reduce(
                    lambda rest, value: graph.add("Where", self._is_finite(value), value, rest),
                    reversed(values),
                )
            case "if_else":
                condition, chosen, other = values
                result = graph.add("Where", self._true(condition), chosen, other)
                return self._known([condition], result)
        return self._known(values, self._of_known(name, values))

    def _of_known(self, name: str, values: Sequence[str]) -> str:
        """Return the result of a primitive whose operands are looked at first."""
        graph = self.graph
        if name in _GUARDED:
            return graph.add(_GUARDED[name], *values)
        if name in _COMPARISONS:
            return self._double(graph.add(_COMPARISONS[name], *values))
        if name == "modulo":
            times = graph.add("Floor", graph.add("Div", *values))
            return graph.add("Sub", values[0], graph.add("Mul", values[1], times))
        if name == "in":
            tests = [graph.add("Equal", values[0], choice) for choice in values[1:]]
        else:
            tests = [self._true(value) for value in values]
        return self._double(self._joined("And" if name == "and" else "Or", tests))


def log1p(graph: GraphBuilder, value: str) -> str:
    """Return log(1 + x) to full precision: ln(u) plus what rounding u = 1 + x lost."""
    one = graph.constant(1.0, np.float64)
    rounded = graph.add("Add", value, one)
    lost = graph.add("Sub", value, graph.add("Sub", rounded, one))
    return graph.add("Add", graph.add("Log", rounded), graph.add("Div", lost, rounded))
