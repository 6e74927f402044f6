"""Sixteen rows with their answers, as parquet and as JSON, and the schema of such a request.

JSON is strict: NaN travels as null, and an integer that a double cannot hold as decimal text.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from export.columns import input_names, polars_type, raw_feeds
from export.graph import open_graph
from export.manifest import MODEL_FILE
from recsys_moe.errors import RequestError
from recsys_moe.files import write_json
from recsys_moe.spec import INT64_MISSING, Column, FeatureSpec

ROWS = 16
_EXACT_IN_A_DOUBLE = 2**53
_DATATYPES = {"string": "BYTES", "int64": "INT64", "float32": "FP32"}
_JSON_TYPES: dict[str, dict[str, Any]] = {
    "BYTES": {"type": "string"},
    "INT64": {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^-?[0-9]+$"}]},
    "FP32": {"type": ["number", "null"]},
}
_ODD: dict[str, tuple[Any, ...]] = {
    "string": (None, "never seen before", "", "ünïcödé 日本語"),
    "int64": (None, 10**15 + 7, 0, -1),
    "float32": (None, float("nan"), 1e30, -1.0),
}
"""Values of the last rows: missing, unseen, and what else a service may send."""

Array = npt.NDArray[Any]


def sample_rows(spec: FeatureSpec, sample: pl.DataFrame) -> pl.DataFrame:
    """Return sixteen rows with keys and inputs: real ones, then missing, unseen and odd ones.

    Raises:
        RequestError: The run's sample has no rows.
    """
    if sample.is_empty():
        raise RequestError("the run's sample.parquet", wanted="rows", got="none")
    rows = pl.concat([sample] * -(-ROWS // sample.height)).head(ROWS)
    keys = [key for key in spec.keys if key in rows.columns]
    columns = {key: rows[key] for key in keys}
    for column in spec.columns:
        if column.name not in keys:
            longest = max(
                (f.num_slots for f in spec.code_features if column.name in f.columns), default=1
            )
            values = _with_odd_values(rows[column.name].to_list(), column, longest)
            columns[column.name] = pl.Series(column.name, values, dtype=polars_type(column))
    return pl.DataFrame(columns)


def write_sample(folder: Path, spec: FeatureSpec, frame: pl.DataFrame, outputs: list[str]) -> None:
    """Write `sample/` and `schema/` of an artifact, answered by its own `model.onnx`."""
    feeds = raw_feeds(frame, spec.columns)
    values = open_graph(folder / MODEL_FILE).run(outputs, feeds)
    answers = dict(zip(outputs, values, strict=True))
    place = folder / "sample"
    datatypes = input_datatypes(spec.columns)
    write_json(
        place / "request.json",
        {"inputs": [tensor_to_json(name, datatypes[name], feeds[name]) for name in feeds]},
    )
    write_json(
        place / "response.json",
        {"outputs": [tensor_to_json(name, "FP32", answer) for name, answer in answers.items()]},
    )
    frame.write_parquet(place / "input.parquet")
    keys = [key for key in spec.keys if key in frame.columns]
    frame.select(keys).with_columns(
        **{name: pl.Series(answer, dtype=pl.Float32) for name, answer in answers.items()}
    ).write_parquet(place / "expected.parquet")
    write_json(folder / "schema" / "request.schema.json", request_schema(spec.columns))


def input_datatypes(columns: Iterable[Column]) -> dict[str, str]:
    """Return the Open Inference Protocol's datatype of every graph input."""
    datatypes = {}
    for column in columns:
        first, *length = input_names(column)
        datatypes[first] = _DATATYPES[column.type]
        datatypes |= dict.fromkeys(length, "INT64")
    return datatypes


def tensor_to_json(name: str, datatype: str, value: Array) -> dict[str, Any]:
    """Return a tensor as the Open Inference Protocol writes it, row-major."""
    flat = value.ravel().tolist()
    if datatype == "FP32":
        flat = [None if np.isnan(number) else number for number in flat]
    elif datatype == "INT64":
        flat = [str(n) if abs(n) > _EXACT_IN_A_DOUBLE and n != INT64_MISSING else n for n in flat]
    return {"name": name, "datatype": datatype, "shape": list(value.shape), "data": flat}


def tensor_from_json(value: Mapping[str, Any]) -> Array:
    """Return the array that `tensor_to_json` wrote."""
    shape, data = value["shape"], value["data"]
    if value["datatype"] == "BYTES":
        return np.array(data, dtype=object).reshape(shape)
    if value["datatype"] == "INT64":
        return np.array([int(number) for number in data], np.int64).reshape(shape)
    numbers = [np.nan if number is None else number for number in data]
    return np.array(numbers, np.float32).reshape(shape)


def request_schema(columns: Sequence[Column]) -> dict[str, Any]:
    """Return the JSON Schema of a request: every input once, in any order."""
    datatypes = input_datatypes(columns)
    ranks = {name: 1 for name in datatypes}
    ranks |= {input_names(column)[0]: 2 for column in columns if column.is_list or column.dim}
    widths = {column.name: [{}, {"const": column.dim}] for column in columns if column.dim}
    kinds = [
        {
            "type": "object",
            "required": ["name", "datatype", "shape", "data"],
            "properties": {
                "name": {"const": name},
                "datatype": {"const": datatype},
                "shape": {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 0},
                    "minItems": ranks[name],
                    "maxItems": ranks[name],
                    **({"prefixItems": widths[name]} if name in widths else {}),
                },
                "data": {"type": "array", "items": _JSON_TYPES[datatype]},
            },
        }
        for name, datatype in datatypes.items()
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Raw columns of some rows, as the Open Inference Protocol v2 carries them",
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "inputs": {
                "type": "array",
                "minItems": len(kinds),
                "maxItems": len(kinds),
                "items": {"anyOf": kinds},
                "allOf": [
                    {"contains": {"properties": {"name": {"const": name}}}} for name in datatypes
                ],
            }
        },
    }


def _is_finite(number: float | None) -> bool:
    return number is not None and math.isfinite(number)


def _with_odd_values(values: list[Any], column: Column, longest: int) -> list[Any]:
    odd = list(_ODD[column.type])
    if column.dim is not None:
        values = [v if v and all(map(_is_finite, v)) else None for v in values]
        odd = [None, *([number] * column.dim for number in (math.nan, 0.0, -1.0))]
        return values[: ROWS - len(odd)] + odd
    if column.type == "float32":  # JSON has no Infinity
        values = [v if v is None or math.isfinite(v) else None for v in values]
    if column.is_list:
        real = next((value for value in values if value), [odd[1]])
        odd = [None, [odd[1]], [], [None, *real], (real * (longest + 2))[: longest + 2]]
    return values[: ROWS - len(odd)] + odd
