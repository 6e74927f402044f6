"""Pre-computed embedding vectors in the graph: float32 [B, D] in, numbers out.

Shapes: B batch, D numbers of a vector, K numbers of a feature.
"""

import numpy as np
import onnx

from export.graph import FLOAT, INT64, GraphBuilder
from recsys_moe.spec import Vector

_LEAST_LENGTH = 1e-12


def vector_numbers(graph: GraphBuilder, feature: Vector) -> str:
    """Append the nodes of a vector feature; return its numbers, float32 [B, K].

    One element that is not finite makes the whole vector missing: zeros, and 1 in the flag.
    """
    one, column = graph.constant([1], np.int64), feature.column
    finite = graph.add("Less", graph.add("Abs", column), graph.constant(np.inf, np.float32))
    count = graph.add("ReduceSum", graph.add("Cast", finite, to=INT64), one, keepdims=1)
    whole = graph.add("Equal", count, graph.constant(feature.dim, np.int64))
    result = graph.add("Where", whole, column, graph.constant(0.0, np.float32))
    if feature.normalize == "l2":
        wide = graph.add("Cast", result, to=onnx.TensorProto.DOUBLE)
        squares = graph.add("ReduceSum", graph.add("Mul", wide, wide), one, keepdims=1)
        least = graph.constant(_LEAST_LENGTH, np.float64)
        length = graph.add("Max", graph.add("Sqrt", squares), least)
        result = graph.add("Cast", graph.add("Div", wide, length), to=FLOAT)
    if not feature.missing_flag:
        return result
    flag = graph.add("Cast", graph.add("Not", whole), to=FLOAT)
    return graph.add("Concat", result, flag, axis=1)
