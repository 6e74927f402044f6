"""A fitted model, or a rule, becomes an expert's file.

    from recsys_moe.frozen.columns import read_rows
    from recsys_moe.frozen.freeze import freeze

    rows, labels = read_rows(folder, "train", features, "income")
    model = LGBMClassifier().fit(rows, labels)
    freeze(model, spec, features, Path("income.onnx"), rows=rows, name="lightgbm_income")

Shapes: N rows, M columns, P outputs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from recsys_moe.errors import RequestError
from recsys_moe.files import whole_file
from recsys_moe.frozen.columns import chosen, meaning_of
from recsys_moe.frozen.convert import Converted, convert, kind_of
from recsys_moe.frozen.expert_file import (
    INPUT,
    OUTPUT,
    ExpertFile,
    describe,
    parse_expert,
)
from recsys_moe.frozen.graph import add_metadata, as_model, expert_graph, gap, run, spread
from recsys_moe.spec import FeatureSpec, Numeric

TOLERANCE = 1e-5
"""The largest gap to the library's answer: of a probability, or relative to the largest value."""
_SAME = 1e-6
_MOST_ROWS = 4096


def freeze(
    model: Any,
    spec: FeatureSpec,
    features: Sequence[str],
    path: Path,
    *,
    rows: NDArray[np.float32],
    name: str,
) -> ExpertFile:
    """Write a fitted model as an expert, after comparing it with its library on rows.

    The graph computes in float32 where that gives the library's answer, else in float64.

    Args:
        model: A fitted classifier or regressor of scikit-learn, LightGBM or XGBoost.
        spec: The feature spec of the rows that it was fitted on.
        features: The features that it reads, in the order of its columns (`columns.rows_of`).
        path: The file, `NAME.onnx`.
        rows: (N, M), training rows: what the comparison and the standardisation are made on; of
            more than 4,096 evenly spaced ones are taken.
        name: What people will call it.

    Raises:
        RequestError: The model has no converter, its graph does not give the library's answer or
            not for each row alone, or the rows are not of these features.
    """
    what = f"{name}: {kind_of(model)}"
    width = sum(place.stop - place.start for place in chosen(spec, features, name))
    rows_NM = np.ascontiguousarray(rows[:: -(-len(rows) // _MOST_ROWS) or 1], np.float32)
    if rows_NM.ndim != 2 or rows_NM.shape[1] != width or not len(rows_NM):
        wanted = f"at least one row of {width} columns"
        raise RequestError(f"{name}, rows", wanted=wanted, got=f"shape {list(rows.shape)}")
    graph, values_NP = _faithful(model, rows_NM, what)
    _check_alone(graph, rows_NM, values_NP, what)
    return _write(graph, values_NP, spec, features, path, name=name, kind=kind_of(model))


def freeze_rule(
    spec: FeatureSpec, feature: str, path: Path, *, rows: NDArray[np.float32], name: str = ""
) -> ExpertFile:
    """Write a numeric feature of the spec, of a column or an expression, as an expert.

    A linear feature's value is brought back to the scale of the expression; under a logarithm or a
    root, it is the number that the model sees. A missing value is the feature's `fill`.

    Args:
        spec: The feature spec.
        feature: The feature's name.
        path: The file, `NAME.onnx`.
        rows: As in `freeze`, the columns of this feature.
        name: What people will call it; the feature's name if empty.

    Raises:
        RequestError: No such feature, or one that is no number.
    """
    numeric = {f.name: f for f in spec.numeric_features if isinstance(f, Numeric)}
    if feature not in numeric:
        wanted = "the name of a numeric feature"
        raise RequestError("rule", wanted=wanted, got=repr(feature), choices=numeric)
    graph = _rule_graph(numeric[feature])
    content = graph.SerializeToString()
    values_NP = run(content, np.ascontiguousarray(rows, np.float32), f"rule {feature!r}")
    name = name or feature
    return _write(graph, values_NP, spec, [feature], path, name=name, kind="rule")


def _faithful(
    model: Any, rows_NM: NDArray[np.float32], what: str
) -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    """Return the first graph that gives the library's answer, and its outputs."""
    smallest = np.inf
    for double in (False, True):
        converted: Converted = convert(model, rows_NM.shape[1], double=double)
        wanted_NP = converted.reference(rows_NM)
        is_log_odds = converted.is_probability and wanted_NP.shape[1] == 2
        num_outputs = 1 if is_log_odds else wanted_NP.shape[1]
        graph = expert_graph(converted, rows_NM.shape[1], num_outputs, what)
        values_NP = run(graph.SerializeToString(), rows_NM, what)
        if values_NP.shape != (len(rows_NM), num_outputs):
            wanted = f"outputs [{len(rows_NM)}, {num_outputs}]"
            raise RequestError(what, wanted=wanted, got=str(list(values_NP.shape)))
        smallest = min(smallest, gap(values_NP, wanted_NP, is_probability=converted.is_probability))
        if smallest <= TOLERANCE:
            return graph, values_NP
    wanted = f"a graph within {TOLERANCE} of the library's answer"
    raise RequestError(what, wanted=wanted, got=f"a gap of {smallest:.2g} on its rows")


def _check_alone(
    graph: onnx.ModelProto, rows_NM: NDArray[np.float32], values_NP: NDArray[np.float32], what: str
) -> None:
    """Refuse a graph for which the other rows of a batch matter, or that fails without any."""
    content = graph.SerializeToString()
    run(content, rows_NM[:0], what)
    for number in range(min(3, len(rows_NM))):
        alone_1P = run(content, rows_NM[number : number + 1], what)
        difference = np.abs(alone_1P - values_NP[number]).max()
        if difference > _SAME * max(1.0, float(np.abs(values_NP).max())):
            wanted = "the same value for a row alone as in a batch"
            raise RequestError(what, wanted=wanted, got=f"a gap of {difference:.2g}")


def _write(
    graph: onnx.ModelProto,
    values_NP: NDArray[np.float32],
    spec: FeatureSpec,
    features: Sequence[str],
    path: Path,
    *,
    name: str,
    kind: str,
) -> ExpertFile:
    means, spreads = spread(values_NP)
    text = describe(
        name=name,
        kind=kind,
        features=tuple(features),
        meaning=meaning_of(spec, features),
        means=means,
        spreads=spreads,
    )
    content = add_metadata(graph, text)
    with whole_file(path) as partial:
        partial.write_bytes(content)
    return parse_expert(content, str(path))


def _rule_graph(feature: Numeric) -> onnx.ModelProto:
    """Return the graph of a rule: the first of its columns, unscaled in float64 where linear."""
    nodes = [helper.make_node("Gather", [INPUT, "first"], ["number"], axis=1)]
    constants = [helper.make_tensor("first", TensorProto.INT64, [1], [0])]
    last = "number"
    if feature.transform == "identity":
        constants += [
            helper.make_tensor("scale", TensorProto.DOUBLE, [], [feature.scale]),
            helper.make_tensor("center", TensorProto.DOUBLE, [], [feature.center]),
        ]
        nodes += [
            helper.make_node("Cast", ["number"], ["wide"], to=TensorProto.DOUBLE),
            helper.make_node("Div", ["wide", "scale"], ["unscaled"]),
            helper.make_node("Add", ["unscaled", "center"], ["raw"]),
        ]
        last = "raw"
    nodes.append(helper.make_node("Cast", [last], [OUTPUT], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        "expert",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["rows", feature.num_numbers])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["rows", 1])],
        initializer=constants,
    )
    return as_model(graph)
