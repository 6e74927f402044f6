"""Numbers in the graph: raw columns as float64, as buckets and scaled.

Shapes: B batch, C raw number columns, K number columns of the features.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from export.expressions import DOUBLE, ExpressionNodes, log1p
from export.graph import FLOAT, INT64, GraphBuilder
from recsys_moe.spec import (
    FIRST_OOV,
    INT64_MISSING,
    MISSING_CODE,
    Bucketized,
    FeatureSpec,
    Numeric,
)


class RawNumbers:
    """All sources of numeric and bucketised features: float64 [B, C], missing is NaN."""

    def __init__(self, graph: GraphBuilder, spec: FeatureSpec) -> None:
        self.graph = graph
        features = [f for f in spec.features if isinstance(f, Numeric | Bucketized)]
        names = [feature.column for feature in features]
        columns = [column for column in spec.columns if column.name in names]
        self.order = [c.name for c in columns if c.type == "float32"]
        parts = []
        if self.order:
            parts.append(graph.add("Cast", self._stack(self.order), to=DOUBLE))
        integers = [c.name for c in columns if c.type == "int64"]
        if integers:
            self.order += integers
            whole = self._stack(integers)
            missing = graph.add("Equal", whole, graph.constant(INT64_MISSING, np.int64))
            wide = graph.add("Cast", whole, to=DOUBLE)
            nan = graph.constant(np.nan, np.float64)
            parts.append(graph.add("Where", missing, nan, wide))
        texts = dict.fromkeys(f.expression for f in features if f.expression is not None)
        if texts:
            self.order += [f"\x1f{text}" for text in texts]
            nodes = ExpressionNodes(graph, spec.columns)
            parts.append(self._stack([nodes(text) for text in texts]))
        if not parts:
            return
        self.values = parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)
        size = graph.add("Abs", self.values)
        self.finite = graph.add("Less", size, graph.constant(np.inf, np.float64))

    def pick(self, sources: list[str]) -> tuple[str, str]:
        """Return values float64 and whether they are finite, bool, of some sources."""
        if sources == self.order:
            return self.values, self.finite
        index = self.graph.constant([self.order.index(name) for name in sources], np.int64)
        return (
            self.graph.add("Gather", self.values, index, axis=1),
            self.graph.add("Gather", self.finite, index, axis=1),
        )

    def _stack(self, names: list[str]) -> str:
        one = self.graph.constant([1], np.int64)
        columns = [self.graph.add("Unsqueeze", name, one) for name in names]
        return columns[0] if len(columns) == 1 else self.graph.add("Concat", *columns, axis=1)


def bucketized(graph: GraphBuilder, raw: RawNumbers, feature: Bucketized) -> str:
    """Return codes int64 [B, 1]: 2 and one more for every edge below the value."""
    values, known = raw.pick([feature.source])
    if feature.allow_inf:
        known = graph.add("Not", graph.add("IsNaN", values))
    edges = graph.constant(np.array([feature.edges], np.float32), np.float64)
    above = graph.add("Cast", graph.add("Greater", values, edges), to=INT64)
    passed = graph.add("ReduceSum", above, graph.constant([1], np.int64), keepdims=1)
    bucket = graph.add("Add", passed, graph.constant(FIRST_OOV, np.int64))
    return graph.add("Where", known, bucket, graph.constant(MISSING_CODE, np.int64))


def numbers(graph: GraphBuilder, raw: RawNumbers, features: Sequence[Numeric]) -> str:
    """Return the numbers of numeric features, float32 [B, K], each flag after its value."""

    def row(values: list[Any], dtype: Any = np.float64) -> str:
        return graph.constant([values], dtype)

    values, known = raw.pick([feature.source for feature in features])
    lows, highs = zip(*(feature.bounds for feature in features), strict=True)
    if max(lows) > -np.inf:
        known = graph.add("And", known, graph.add("GreaterOrEqual", values, row(list(lows))))
    if min(highs) < np.inf:
        known = graph.add("And", known, graph.add("LessOrEqual", values, row(list(highs))))
    values = _transformed(graph, values, [feature.transform for feature in features])
    centred = graph.add("Sub", values, row([feature.center for feature in features]))
    scaled = graph.add("Mul", centred, row([feature.scale for feature in features]))
    floored = graph.add("Max", scaled, row([-feature.clip for feature in features]))
    clipped = graph.add("Min", floored, row([feature.clip for feature in features]))
    result = graph.add("Where", known, clipped, row([feature.fill for feature in features]))
    value = graph.add("Cast", result, to=FLOAT)
    if not any(feature.missing_flag for feature in features):
        return value
    flag = graph.add("Cast", graph.add("Not", known), to=FLOAT)
    both = graph.add("Concat", value, flag, axis=1)
    order = [
        place
        for i, feature in enumerate(features)
        for place in ([i, len(features) + i] if feature.missing_flag else [i])
    ]
    return graph.add("Gather", both, graph.constant(order, np.int64), axis=1)


def _transformed(graph: GraphBuilder, values: str, transforms: list[str]) -> str:
    """Return values float64 [B, k], each column through its transform; below 0 it is any number."""
    zero = graph.constant(0.0, np.float64)
    for name in sorted(set(transforms) - {"identity"}):
        positive = graph.add("Max", values, zero)
        through = log1p(graph, positive) if name == "log1p" else graph.add("Sqrt", positive)
        mine = graph.constant([[transform == name for transform in transforms]], np.bool_)
        values = graph.add("Where", mine, through, values)
    return values
