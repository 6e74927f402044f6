"""A vector is the same numbers in the graph, in the pipeline and by the definition."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest

from export.columns import raw_feeds
from export.fuzz import fuzzed_rows, missing_rows
from export.graph import open_graph
from export.preprocess import preprocess_model
from export.reference import ReferenceEncoder
from export.sample import ROWS, request_schema, sample_rows, tensor_from_json, tensor_to_json
from export.triton import config
from pipelines.encoding.encode import numbers
from pipelines.encoding.vectors import vector_numbers
from recsys_moe.errors import RequestError, SpecError
from recsys_moe.spec import Column, FeatureSpec, Numeric, Task, Vector

DIM = 5
FUZZED = 10_000
TEXT = Column(name="text", type="float32", dim=DIM)
COVER = Column(name="cover", type="float32", dim=3)


def vector(name: str, column: Column, normalize: str, *, flag: bool) -> Vector:
    return Vector(
        name=name, column=column.name, dim=column.dim, normalize=normalize, missing_flag=flag
    )


PLAIN, FLAGGED = vector("plain", TEXT, "none", flag=False), vector("flag", TEXT, "none", flag=True)
UNIT, COVER_UNIT = vector("unit", TEXT, "l2", flag=True), vector("cover", COVER, "l2", flag=False)
NAMED = {f.name: f for f in (PLAIN, FLAGGED, UNIT, COVER_UNIT)}


PRICE = Column(name="price", type="float32")
NUMBER = Numeric(
    name="price",
    column="price",
    transform="identity",
    center=0.5,
    scale=2.0,
    clip=8.0,
    missing_flag=True,
)


def spec_of(*features: Vector | Numeric, columns: tuple[Column, ...] = (TEXT,)) -> FeatureSpec:
    return FeatureSpec(
        dataset="vectors",
        columns=columns,
        tables=(),
        features=features,
        tasks=(Task(name="click", label="click"),),
        train_rows=1,
    )


MIXED = spec_of(PLAIN, NUMBER, UNIT, FLAGGED, COVER_UNIT, columns=(TEXT, PRICE, COVER))


def run_graph(spec: FeatureSpec, place: Path, frame: pl.DataFrame) -> tuple:
    onnx.save(preprocess_model(spec, place), place / "preprocess.onnx")
    session = open_graph(place / "preprocess.onnx")
    return session.run(["codes", "numbers"], raw_feeds(frame, spec.columns))


@pytest.mark.parametrize("name", [*NAMED, "all"])
def test_graph_pipeline_and_reference_agree(name: str, tmp_path: Path) -> None:
    spec = MIXED if name == "all" else spec_of(NAMED[name], columns=(COVER, TEXT))
    frame = fuzzed_rows(spec, tmp_path, pl.DataFrame(), FUZZED, seed=len(name))

    codes, found = run_graph(spec, tmp_path, frame)

    assert codes.shape == (FUZZED, 0)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    _, by_definition = ReferenceEncoder(spec, tmp_path)(frame)
    np.testing.assert_allclose(found, by_definition, rtol=0, atol=1e-6)
    np.testing.assert_allclose(numbers(frame, spec), by_definition, rtol=0, atol=1e-6)


def test_fuzzed_vectors_are_missing_in_every_way_and_reach_every_length(tmp_path: Path) -> None:
    spec = spec_of(UNIT)
    vectors = fuzzed_rows(spec, tmp_path, pl.DataFrame(), 2_000)["text"].to_list()

    whole = [v for v in vectors if v is not None and all(map(is_finite, v))]
    lengths = {math.sqrt(sum(x * x for x in v)) for v in whole}
    broken = [v for v in vectors if v is not None and not all(map(is_finite, v))]
    assert None in vectors
    assert any(None in v for v in broken)
    assert any(math.inf in v for v in broken)
    assert any(sum(map(is_finite, v)) == DIM - 1 for v in broken)
    assert any(not any(map(is_finite, v)) for v in broken)
    assert 0.0 in lengths
    assert any(0 < length < 1e-12 for length in lengths)
    assert any(length > 1e30 for length in lengths)


def is_finite(number: float | None) -> bool:
    return number is not None and math.isfinite(number)


@pytest.mark.parametrize(
    ("raw", "plain", "unit"),
    [
        ([3.0, 0.0, -4.0, 0.0, 0.0], [3, 0, -4, 0, 0, 0], [0.6, 0, -0.8, 0, 0, 0]),
        ([0.0] * 5, [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]),
        ([1e-13, 0.0, 0.0, 0.0, 0.0], [1e-13, 0, 0, 0, 0, 0], [0.1, 0, 0, 0, 0, 0]),
        ([3e38] * 4 + [0.0], [3e38] * 4 + [0, 0], [0.5, 0.5, 0.5, 0.5, 0, 0]),
        (None, [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]),
        ([1.0, 1.0, math.nan, 1.0, 1.0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]),
        ([1.0, 1.0, 1.0, 1.0, -math.inf], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]),
        ([None, 1.0, 1.0, 1.0, 1.0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]),
    ],
)
def test_golden_vectors(raw: list | None, plain: list, unit: list, tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": [raw]}, schema={"text": pl.List(pl.Float32)})

    for feature, wanted in ((FLAGGED, plain), (UNIT, unit)):
        _, found = run_graph(spec_of(feature), tmp_path, frame)
        np.testing.assert_allclose(found[0], np.float32(wanted), rtol=1e-7)
        encoded = vector_numbers(frame["text"], feature)
        np.testing.assert_allclose(encoded[0], np.float32(wanted), rtol=1e-7)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_nothing_known_is_zeros_and_flags(rows: int, tmp_path: Path) -> None:
    spec = spec_of(UNIT, PLAIN)

    _, found = run_graph(spec, tmp_path, missing_rows(spec, rows))

    np.testing.assert_array_equal(found, [[0] * DIM + [1] + [0] * DIM] * rows or np.empty((0, 11)))


def test_a_vector_of_another_length_has_no_array() -> None:
    frame = pl.DataFrame({"text": [None, [1.0] * 4]}, schema={"text": pl.List(pl.Float32)})

    with pytest.raises(RequestError, match=r"'text': wanted vectors of 5 numbers, got .* row 1"):
        raw_feeds(frame, [TEXT])


def test_a_vector_feature_needs_the_columns_own_length(tmp_path: Path) -> None:
    for column in (Column(name="text", type="float32"), replace(TEXT, dim=4)):
        spec = replace(spec_of(UNIT), columns=(column,))
        with pytest.raises(SpecError, match="wanted a column of vectors of 5"):
            preprocess_model(spec, tmp_path)
    with pytest.raises(SpecError, match="wanted a column of numbers"):
        preprocess_model(spec_of(replace(NUMBER, column="text")), tmp_path)


def test_a_spec_keeps_its_vectors(tmp_path: Path) -> None:
    MIXED.save(tmp_path / "spec.json")

    assert FeatureSpec.load(tmp_path / "spec.json") == MIXED
    assert MIXED.num_numbers == 5 + 2 + 6 + 6 + 3
    assert MIXED.num_slots == 0


def test_the_sample_request_survives_json_and_its_schema(tmp_path: Path) -> None:
    spec = spec_of(UNIT)
    real = pl.DataFrame({"text": [[1.0, 2.0, 3.0, 4.0, 5.0], None, [math.inf, 0.0, 0.0, 0.0, 0.0]]})
    frame = sample_rows(spec, real.cast({"text": pl.List(pl.Float32)}))
    feed = raw_feeds(frame, spec.columns)["text"]

    sent = tensor_to_json("text", "FP32", feed)

    assert sent["shape"] == [ROWS, DIM]
    assert len(sent["data"]) == ROWS * DIM
    json.dumps(sent, allow_nan=False)
    np.testing.assert_array_equal(tensor_from_json(sent), feed)
    assert 0 < np.isnan(feed).all(axis=1).sum() < ROWS
    kinds = request_schema(spec.columns)["properties"]["inputs"]["items"]["anyOf"]
    assert kinds[0]["properties"]["shape"]["minItems"] == 2
    assert kinds[0]["properties"]["shape"]["prefixItems"] == [{}, {"const": DIM}]


def test_triton_is_told_the_length_of_a_vector() -> None:
    text = config("m", [TEXT, Column(name="x", type="int64")], ["p_click"])

    assert '{ name: "text", data_type: TYPE_FP32, dims: [ -1, 5 ] }' in text
    assert '{ name: "x", data_type: TYPE_INT64, dims: [ -1 ] }' in text
