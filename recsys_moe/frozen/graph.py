"""A converted model in the one form that all experts have.

A classifier of two classes puts out its log-odds, one of more the logarithm of each probability, a
regressor its values. Probabilities are kept from 0 by `LEAST`.

Shapes: N rows, M columns, P outputs, C classes.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxscript.optimizer import optimize

from recsys_moe.errors import RequestError
from recsys_moe.frozen.convert import Converted, Values
from recsys_moe.frozen.expert_file import (
    INPUT,
    IR_VERSION,
    METADATA,
    ML_OPSET,
    OPSET,
    OUTPUT,
    RUN_ERRORS,
    open_expert,
)

LEAST = 1e-7
_FORBIDDEN = ("Loop", "If", "Scan", "NonZero")
_VERSIONS = {"": OPSET, "ai.onnx.ml": ML_OPSET, "com.microsoft": 1}
_CHUNK = 1024


def expert_graph(converted: Converted, width: int, num_outputs: int, what: str) -> onnx.ModelProto:
    """Return a graph from float32 (N, M) to float32 (N, P).

    Raises:
        RequestError: It has an operator that an artifact may not have.
    """
    graph = converted.graph.graph
    nodes = _needed(list(graph.node), converted.output)
    source = graph.input[0]
    element = source.type.tensor_type.elem_type
    names = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in names]
    # some operators refuse an empty batch: a row of zeros goes along, and its output is dropped
    before = [
        helper.make_node("Concat", [INPUT, "frozen.no_row"], ["frozen.rows"], axis=0),
        helper.make_node("Cast", ["frozen.rows"], [source.name], to=element),
    ]
    after = [
        helper.make_node("Cast", [converted.output], ["frozen.all"], to=TensorProto.FLOAT),
        helper.make_node(
            "Slice", ["frozen.all", "frozen.zero", "frozen.last", "frozen.zero"], ["frozen.answer"]
        ),
    ]
    constants += [
        helper.make_tensor("frozen.no_row", TensorProto.FLOAT, [1, width], [0.0] * width),
        helper.make_tensor("frozen.zero", TensorProto.INT64, [1], [0]),
        helper.make_tensor("frozen.last", TensorProto.INT64, [1], [-1]),
    ]
    more, tensors = _outputs(converted.is_probability, num_outputs)
    made = helper.make_graph(
        [*before, *nodes, *after, *more],
        "expert",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["rows", num_outputs])],
        initializer=[*constants, *tensors],
    )
    _check(made, what)
    model = as_model(made)
    # a Gaussian process computes shapes of constants, more of them than an artifact may have
    return optimize(model) if any(node.op_type == "Shape" for node in nodes) else model


def as_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    """Wrap an expert's graph, importing the operator sets that its nodes use."""
    used = sorted({node.domain for node in graph.node} | {""})
    return helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid(domain, _VERSIONS[domain]) for domain in used],
        producer_name="recsys-moe",
    )


def add_metadata(model: onnx.ModelProto, text: str) -> bytes:
    """Return the bytes of an expert's file."""
    helper.set_model_props(model, {METADATA: text})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def run(content: bytes, rows_NM: NDArray[np.float32], what: str) -> NDArray[np.float32]:
    """Return a graph's outputs on some rows, a thousand at a time.

    Raises:
        RequestError: ONNX Runtime refuses, or something that is put out is not finite.
    """
    session = open_expert(content, what)
    starts = range(0, max(len(rows_NM), 1), _CHUNK)
    try:
        parts = [session.run(None, {INPUT: rows_NM[i : i + _CHUNK]})[0] for i in starts]
    except RUN_ERRORS as error:
        got = str(error).splitlines()[0]
        raise RequestError(what, wanted="a graph that runs on any rows", got=got) from None
    values_NP: NDArray[np.float32] = np.concatenate(parts)
    if not np.isfinite(values_NP).all():
        got = f"{(~np.isfinite(values_NP)).any(1).sum()} rows where they are not"
        raise RequestError(what, wanted="finite outputs", got=got)
    return values_NP


def gap(values_NP: NDArray[np.float32], wanted: Values, *, is_probability: bool) -> float:
    """Return the largest gap to the library's answer: of a probability, or relative to the values.

    Probabilities are compared as such, whatever logarithms make of the smallest.
    """
    if not is_probability:
        scale = max(1.0, float(np.abs(wanted).max(initial=0)))
        return float(np.abs(values_NP - wanted).max(initial=0)) / scale
    values = values_NP.astype(np.float64)
    if wanted.shape[1] == 2:
        return float(np.abs(1 / (1 + np.exp(-values[:, 0])) - wanted[:, 1]).max(initial=0))
    return float(np.abs(np.exp(values) - wanted).max(initial=0))


def _needed(nodes: list[onnx.NodeProto], output: str) -> list[onnx.NodeProto]:
    """Return the nodes that one output depends on, in order."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _outputs(
    is_probability: bool, num_outputs: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return the nodes and constants from `frozen.answer` to the expert's output."""
    if not is_probability:
        return [helper.make_node("Identity", ["frozen.answer"], [OUTPUT])], []
    tensors = [
        numpy_helper.from_array(np.asarray(value), f"frozen.log.{name}")
        for name, value in (("least", np.float32(LEAST)), ("most", np.float32(1)))
    ]
    clip = helper.make_node(
        "Clip", ["frozen.answer", "frozen.log.least", "frozen.log.most"], ["frozen.log.clipped"]
    )
    if num_outputs > 1:
        return [clip, helper.make_node("Log", ["frozen.log.clipped"], [OUTPUT])], tensors
    tensors += [
        numpy_helper.from_array(np.asarray([index], np.int64), f"frozen.log.{index}")
        for index in (0, 1)
    ]
    return [
        clip,
        helper.make_node("Log", ["frozen.log.clipped"], ["frozen.log.both"]),
        helper.make_node("Gather", ["frozen.log.both", "frozen.log.1"], ["frozen.log.yes"], axis=1),
        helper.make_node("Gather", ["frozen.log.both", "frozen.log.0"], ["frozen.log.no"], axis=1),
        helper.make_node("Sub", ["frozen.log.yes", "frozen.log.no"], [OUTPUT]),
    ], tensors


def _check(graph: onnx.GraphProto, what: str) -> None:
    for node in graph.node:
        bad = node.op_type in _FORBIDDEN or "Sequence" in node.op_type
        if bad or node.domain not in _VERSIONS:
            wanted = "a converted graph without loops, sequences and private operators"
            got = f"{node.domain}.{node.op_type}".lstrip(".")
            raise RequestError(what, wanted=wanted, got=got)


def spread(values: NDArray[np.float32]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each column, the latter 1 for a constant."""
    means = values.mean(0, dtype=np.float64)
    spreads = values.std(0, dtype=np.float64)
    constant = spreads <= 1e-6 * np.maximum(1, np.abs(means))
    return means.tolist(), [
        1.0 if c else s for c, s in zip(constant, spreads.tolist(), strict=True)
    ]
