"""ONNX graphs by hand: a builder that names things, the merge of two, and how to run one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 21, 10
"""The lowest operator set with 4-bit types, and the file format that goes with it."""
ML_OPSET, MICROSOFT_OPSET = 4, 1
_ERRORS_ONLY = 3
INNER = "::"
"""In every name inside a graph and in no input or output, so that columns may be named freely."""


class GraphBuilder:
    """Collect nodes and constants; what an operator returns is the name of its result."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[bytes, onnx.TensorProto] = {}

    def name(self, word: str) -> str:
        """Return a new name inside the graph."""
        return f"{self.prefix}{INNER}{word}_{len(self.nodes)}"

    def constant(self, value: object, dtype: Any) -> str:
        """Return the name of a constant tensor; equal ones are stored once. Texts: `object`."""
        array = np.asarray(value, dtype=dtype)
        content = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
        key = repr((array.shape, array.dtype.str)).encode() + content
        if key not in self.constants:
            name = f"{self.prefix}{INNER}constant_{len(self.constants)}"
            self.constants[key] = numpy_helper.from_array(array, name)
        return self.constants[key].name

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Append a node with one result."""
        return self.add_many(operator, inputs, 1, domain=domain, **attributes)[0]

    def add_many(
        self,
        operator: str,
        inputs: Sequence[str],
        count: int,
        *,
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Append a node with several results."""
        name = self.name(operator)
        outputs = [name] if count == 1 else [f"{name}.{i}" for i in range(count)]
        self.nodes.append(
            helper.make_node(operator, inputs, outputs, name=name, domain=domain, **attributes)
        )
        return outputs

    def rename_last(self, output: str) -> None:
        """Give the result of the last node an outer name."""
        self.nodes[-1].output[0] = output

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """Return the graph as a model."""
        graph = helper.make_graph(
            self.nodes, self.prefix, inputs, outputs, initializer=list(self.constants.values())
        )
        return make_model(graph)


def make_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    """Wrap a graph, importing the operator sets that its nodes use."""
    versions = {"": OPSET, "ai.onnx.ml": ML_OPSET, "com.microsoft": MICROSOFT_OPSET}
    used = {node.domain for node in graph.node} | {""}
    imports = [helper.make_opsetid(domain, versions[domain]) for domain in sorted(used)]
    return helper.make_model(
        graph, ir_version=IR_VERSION, opset_imports=imports, producer_name="recsys-moe"
    )


def tensor(name: str, element: int, *dims: str | int) -> onnx.ValueInfoProto:
    """Describe an input or output; a dimension is a number or a word that stands for one."""
    return helper.make_tensor_value_info(name, element, dims)


def merge(first: onnx.ModelProto, second: onnx.ModelProto) -> onnx.ModelProto:
    """Feed the outputs of one model to the inputs of the same names of another.

    Initializers are copied as they are, so that external data stays at the same offsets of the
    same file. (`onnx.compose` runs the checker on a model in memory, which external data beside
    the file does not survive.)
    """
    graph = helper.make_graph(
        [*first.graph.node, *second.graph.node],
        "model",
        first.graph.input,
        second.graph.output,
        initializer=[*first.graph.initializer, *second.graph.initializer],
    )
    return make_model(graph)


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    """Open a graph on one core, quietly; external data is found beside its file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def count_operators(model: onnx.ModelProto) -> dict[str, int]:
    """Return how often each operator occurs, ordered by name.

    Node attributes with graphs of their own do not occur in what `check_operators` lets pass.
    """
    names = sorted(node.op_type for node in model.graph.node)
    return {name: names.count(name) for name in dict.fromkeys(names)}


FLOAT, INT32, INT64, STRING = (
    int(TensorProto.FLOAT),
    int(TensorProto.INT32),
    int(TensorProto.INT64),
    int(TensorProto.STRING),
)
