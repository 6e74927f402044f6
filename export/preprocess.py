"""The feature spec as an ONNX graph: raw columns in, codes and numbers out.

Shapes: B batch, L cells of a list as it came, S slots of a feature.

Every look-up also holds the missing marker as a key, so a scalar with one unseen bucket costs one
node. Features that share a table are looked up together: its vocabulary is in the graph once.
"""

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from export.columns import input_names
from export.graph import FLOAT, INT32, INT64, STRING, GraphBuilder, tensor
from export.hash_nodes import crossed, hash_codes
from export.manifest import CODES, NUMBERS
from export.numeric_nodes import RawNumbers, bucketized, numbers
from export.vectors import vector_numbers
from export.vocabulary import check_graphable, read_vocabulary
from recsys_moe.errors import SpecError
from recsys_moe.spec import (
    FIRST_OOV,
    INT64_MISSING,
    MISSING_CODE,
    PAD,
    Bucketized,
    Categorical,
    Column,
    ColumnType,
    Crossed,
    FeatureSpec,
    Numeric,
    Table,
    Vector,
)

_ELEMENTS: dict[ColumnType, int] = {"string": STRING, "int64": INT64, "float32": FLOAT}
_UNLISTED = -1


def preprocess_model(spec: FeatureSpec, folder: Path) -> onnx.ModelProto:
    """Compile a spec and the vocabularies beside it.

    Args:
        spec: What the features command wrote.
        folder: The folder that the spec's vocabulary paths are relative to.

    Returns:
        A model from every column of the spec to `codes` int32 [B, num_slots] and `numbers`
        float32 [B, num_numbers], equal to the tensors of the features command.

    Raises:
        SpecError: A feature or a name has no place in a graph, or a vocabulary is not the spec's.
    """
    check_graphable(spec)
    graph = GraphBuilder("preprocess")
    raw = RawNumbers(graph, spec)
    pieces = _categorical(graph, spec, folder)
    for feature in spec.code_features:
        if isinstance(feature, Bucketized):
            pieces[feature.name] = bucketized(graph, raw, feature)
        elif isinstance(feature, Crossed):
            pieces[feature.name] = crossed(graph, spec, feature)
    codes = ""
    if pieces:
        slots = [pieces[feature.name] for feature in spec.code_features]
        graph.add("Cast", graph.add("Concat", *slots, axis=1), to=INT32)
        graph.rename_last(codes := CODES)
    if spec.numeric_features:
        _all_numbers(graph, raw, spec)
        graph.rename_last(NUMBERS)
    _fill_in(graph, spec, codes)
    return graph.model(
        [info for column in spec.columns for info in _inputs(column)],
        [
            tensor(CODES, INT32, "batch", spec.num_slots),
            tensor(NUMBERS, FLOAT, "batch", spec.num_numbers),
        ],
    )


def _inputs(column: Column) -> list[onnx.ValueInfoProto]:
    element, names = _ELEMENTS[column.type], input_names(column)
    if not column.is_list:
        return [tensor(names[0], element, "batch", *([column.dim] if column.dim else []))]
    return [tensor(names[0], element, "batch", names[1]), tensor(names[1], INT64, "batch")]


def _fill_in(graph: GraphBuilder, spec: FeatureSpec, codes: str) -> None:
    """Make the side of the boundary that no feature fills: [B, 0]."""
    if codes and spec.numeric_features:
        return
    if not spec.features:
        raise SpecError("features", wanted="at least one", got="none")
    zero, there = graph.constant([0], np.int64), CODES if codes else NUMBERS
    empty = graph.add("Slice", there, zero, zero, graph.constant([1], np.int64))
    graph.add("Cast", empty, to=FLOAT if codes else INT32)
    graph.rename_last(NUMBERS if codes else CODES)


def _categorical(graph: GraphBuilder, spec: FeatureSpec, folder: Path) -> dict[str, str]:
    """Return the codes int64 [B, S] of every categorical feature, one look-up a table."""

    def place(feature: Categorical) -> tuple[str, ColumnType]:
        return feature.table, spec.column(feature.column).type

    features = [f for f in spec.code_features if isinstance(f, Categorical)]
    pieces = {}
    for (table, column_type), group in groupby(sorted(features, key=place), key=place):
        members = list(group)
        cells = [_cells(graph, spec, feature) for feature in members]
        encoder = _Encoder(graph, spec.table(table), column_type, folder)
        codes = [encoder(cells[0])] if len(cells) == 1 else _together(graph, encoder, cells)
        for feature, code in zip(members, codes, strict=True):
            pieces[feature.name] = _slots(graph, spec, feature, code)
    return pieces


def _cells(graph: GraphBuilder, spec: FeatureSpec, feature: Categorical) -> str:
    """Return a scalar column [B], or the cells of a list column that may count, [B, L]."""
    ids = input_names(spec.column(feature.column))[0]
    if feature.max_len is None or feature.keep == "last":
        return ids
    bounds = [graph.constant([value], np.int64) for value in (0, feature.max_len, 1)]
    return graph.add("Slice", ids, *bounds)


def _together(graph: GraphBuilder, encoder: "_Encoder", cells: list[str]) -> list[str]:
    """Encode several columns by one look-up: flat, side by side, and back to their shapes."""
    flat = [graph.add("Reshape", cell, graph.constant([-1], np.int64)) for cell in cells]
    sizes = graph.add("Concat", *(graph.add("Shape", part) for part in flat), axis=0)
    codes = encoder(graph.add("Concat", *flat, axis=0))
    parts = graph.add_many("Split", [codes, sizes], len(cells), axis=0)
    return [
        graph.add("Reshape", part, graph.add("Shape", cell), allowzero=1)
        for part, cell in zip(parts, cells, strict=True)
    ]


class _Encoder:
    """The look-up of one table for values of one type: the same for any shape."""

    def __init__(
        self, graph: GraphBuilder, table: Table, column_type: ColumnType, folder: Path
    ) -> None:
        self.graph, self.num_oov, self.column_type = graph, table.num_oov, column_type
        values = read_vocabulary(folder, table).to_list()
        if values and isinstance(values[0], str) != (column_type == "string"):
            raise SpecError(
                f"table {table.name!r}", wanted=f"a vocabulary of {column_type}", got="another type"
            )
        codes = np.arange(table.first_value, table.first_value + len(values), dtype=np.int64)
        default = FIRST_OOV if table.num_oov == 1 else _UNLISTED
        self.attributes: dict[str, Any] = {"domain": "ai.onnx.ml"}
        if column_type == "string":
            self.attributes |= {
                "keys_strings": ["", *values],
                "values_int64s": [MISSING_CODE, *codes.tolist()],
                "default_int64": default,
            }
        else:
            keys = np.array([INT64_MISSING, *values], dtype=np.int64)
            self.attributes |= {
                "keys_tensor": onnx.numpy_helper.from_array(keys),
                "values_tensor": onnx.numpy_helper.from_array(np.append(MISSING_CODE, codes)),
                "default_tensor": helper.make_tensor("", INT64, [1], [default]),
            }

    def __call__(self, cells: str) -> str:
        """Return codes int64 of the shape of the cells."""
        codes = self.graph.add("LabelEncoder", cells, **self.attributes)
        if self.num_oov == 1:
            return codes
        text = cells
        if self.column_type == "int64":
            text = self.graph.add("Cast", cells, to=STRING)
        unseen = hash_codes(self.graph, text, self.num_oov)
        listed = self.graph.add(
            "GreaterOrEqual", codes, self.graph.constant(MISSING_CODE, np.int64)
        )
        return self.graph.add("Where", listed, codes, unseen)


def _slots(graph: GraphBuilder, spec: FeatureSpec, feature: Categorical, codes: str) -> str:
    """Return a feature's codes as [B, S]; cells past a list's length become padding."""
    one = graph.constant([1], np.int64)
    if feature.max_len is None:
        return graph.add("Unsqueeze", codes, one)
    pad = graph.constant(PAD, np.int64)
    wide = graph.add("Pad", codes, graph.constant([0, 0, 0, feature.max_len], np.int64), pad)
    length = graph.add("Unsqueeze", input_names(spec.column(feature.column))[1], one)
    positions = graph.constant(np.arange(feature.max_len)[None, :], np.int64)
    if feature.keep == "last":
        inside = graph.add("Min", length, graph.add("Shape", codes, start=1))
        start = graph.add("Sub", inside, graph.constant(feature.max_len, np.int64))
        start = graph.add("Max", start, graph.constant(0, np.int64))
        cut = graph.add("GatherElements", wide, graph.add("Add", start, positions), axis=1)
    else:
        bounds = [graph.constant([value], np.int64) for value in (0, feature.max_len)]
        cut = graph.add("Slice", wide, *bounds, one)
    return graph.add("Where", graph.add("Less", positions, length), cut, pad)


def _all_numbers(graph: GraphBuilder, raw: RawNumbers, spec: FeatureSpec) -> None:
    """Append the nodes to all numbers, float32 [B, num_numbers]; the last is the result.

    Numeric features that follow each other are computed together.
    """
    pieces = []
    for kind, group in groupby(spec.numeric_features, key=type):
        if kind is Vector:
            pieces += [vector_numbers(graph, f) for f in group if isinstance(f, Vector)]
        else:
            pieces.append(numbers(graph, raw, [f for f in group if isinstance(f, Numeric)]))
    if len(pieces) > 1:
        graph.add("Concat", *pieces, axis=1)
