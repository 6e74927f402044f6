"""Vectors that come with the rows: kept whole, missing whole, quarantined when misfits."""

import json
import math

import numpy as np
import polars as pl
import pytest

from recsys_moe.errors import RequestError
from recsys_moe.spec import Column, FeatureSpec

DIM = 3
KINDS = [pl.List(pl.Float64), pl.List(pl.Float32), pl.Array(pl.Float64, DIM), pl.List(pl.Int64)]
ODD = [
    None,
    [None, 1.0, 2.0],
    [math.nan, 1.0, 2.0],
    [math.inf, 1.0, 2.0],
    [0.0] * DIM,
    [1e-13] * DIM,
    [1e300, 0.0, 0.0],
    [3e38, 0.0, 3e38],
]
PLAIN = {"kind": "vector", "column": "text", "dim": DIM}
UNIT = {**PLAIN, "name": "unit", "normalize": "l2", "missing_flag": True}
PRICE = {"kind": "numeric", "column": "price"}


def draw_vectors(rows: int, seed: int, odd: list) -> list:
    draw = np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)
    return [odd[i] if i < len(odd) else v for i, v in enumerate(draw.astype(float).tolist())]


@pytest.fixture
def make(build_features, dataset_of, frame):
    """Return a function that builds features of a vector column of some type."""

    def build(kind, *features, rows=300, odd=(), past=(), **more):
        frames = {}
        for seed, name in enumerate(("train", "test")):
            drawn = [None] * rows if kind == pl.Null else draw_vectors(rows, seed, list(odd))
            values = pl.Series("text", drawn, strict=False).cast(kind, strict=False)
            frames[name] = frame(rows, seed).with_columns(values)
        value = dataset_of(list(features) or [PLAIN], **dict(past))
        return build_features(value, frames, **more)

    return build


def read(output, split="test"):
    prepared = pl.read_parquet(output / "prepared" / split / "*.parquet")
    return prepared, np.load(output / "tensors" / split / "numbers.npy")


def by_definition(vector, *, unit):
    """The numbers and the flag of one vector, in plain Python."""
    numbers = [math.nan if x is None else float(np.float32(x)) for x in vector or [math.nan]]
    if not all(map(math.isfinite, numbers)):
        return [0.0] * DIM + [1.0]
    length = max(math.sqrt(math.fsum(x * x for x in numbers)), 1e-12) if unit else 1.0
    return [x / length for x in numbers] + [0.0]


@pytest.mark.filterwarnings("ignore:overflow")
def test_numbers_are_the_definition_in_the_features_order(make):
    output = make(KINDS[0], UNIT, PRICE, {**PLAIN, "missing_flag": True}, odd=ODD)

    prepared, numbers = read(output)

    assert prepared.schema["text"] == pl.List(pl.Float32)
    vectors = prepared["text"].to_list()
    unit = np.array([by_definition(v, unit=True) for v in vectors])
    plain = np.array([by_definition(v, unit=False) for v in vectors])
    np.testing.assert_allclose(numbers[:, :4], unit, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(numbers[:, 5:], plain.astype(np.float32))
    assert unit[: len(ODD), -1].tolist() == [1, 1, 1, 1, 0, 0, 1, 0]
    assert np.abs(numbers[:, 4]).max() > 0
    report = json.loads((output / "report.json").read_text())
    assert report["splits"]["test"]["features"]["unit"]["missing"] == 5


def test_the_spec_says_what_the_file_says(make):
    spec = FeatureSpec.load(make(KINDS[1], UNIT, PRICE) / "feature_spec.json")

    assert spec.column("text") == Column(name="text", type="float32", dim=DIM)
    assert [f.num_numbers for f in spec.numeric_features] == [DIM + 1, 1]
    assert spec.num_numbers == DIM + 2
    assert spec.num_slots == 0


def test_the_type_of_the_file_changes_nothing(make, contents):
    whole = [[float(i), 0.0, -2.0] for i in range(300)]  # of every type

    first, *others = [make(kind, UNIT, PLAIN, odd=whole) for kind in KINDS]

    wanted = contents(first / "tensors") | contents(first / "prepared")
    for other in others:
        assert contents(other / "tensors") | contents(other / "prepared") == wanted


def test_a_column_without_a_single_vector_is_missing(make):
    prepared, numbers = read(make(pl.Null, UNIT, PRICE))

    assert prepared["text"].null_count() == len(prepared)
    np.testing.assert_array_equal(numbers[:, :4], [[0, 0, 0, 1]] * len(numbers))


def test_a_vector_of_another_length_goes_to_quarantine_alone(make):
    odd = [[], [1.0], [1.0] * (DIM + 1), None, [1.0] * DIM]

    output = make(KINDS[0], odd=odd, max_quarantine_share=0.1)

    bad = pl.read_parquet(output / "quarantine" / "*.parquet")
    assert bad["reason"].unique().to_list() == ["vector text: wanted 3 numbers"]
    assert bad["text"].to_list() == [[], [1.0], [1.0] * 4] * 2
    kept = sum(len(read(output, split)[0]) for split in ("train", "valid", "test"))
    assert kept + len(bad) == 600


@pytest.mark.parametrize(
    ("kind", "features", "message"),
    [
        (KINDS[2], [{**PLAIN, "dim": 4}], r"dim: wanted the length .* 'text', 3, got 4"),
        (KINDS[0], [PLAIN, {**UNIT, "dim": 4}], r"\[1\].dim: wanted the length .* 3, got 4"),
        (pl.List(pl.String), [PLAIN], r"column: wanted a column of lists of numbers, got 'text'"),
        (KINDS[0], [{**PLAIN, "column": "price"}], r"lists of numbers, got 'price'.* float32"),
        (KINDS[0], [{"kind": "vector", "column": "text"}], r"dim: wanted .*got nothing"),
        (KINDS[0], [{**PLAIN, "dim": 0}], r"dim: wanted a whole number from 1 to 65536, got 0"),
        (KINDS[0], [{**PLAIN, "normalize": "l1"}], r"normalize: wanted none or l2, got 'l1'"),
        (KINDS[0], [PLAIN, {"kind": "numeric", "name": "n", "column": "text"}], "holds vectors"),
        (KINDS[0], [PLAIN, {"kind": "hashed", "name": "n", "column": "text", "num_buckets": 4}],
         "holds floats"),
    ],
)  # fmt: skip
def test_a_vector_that_cannot_be_is_named(make, kind, features, message):
    with pytest.raises(RequestError, match=message):
        make(kind, *features)


def test_a_column_that_an_aggregate_adds_is_no_vector(make):
    rate = {"name": "item_rate", "kind": "rate", "of": "item", "target": "click"}
    of_rate = {**PLAIN, "name": "rate", "column": "item_rate"}

    with pytest.raises(RequestError, match=r"lists of numbers, got 'item_rate', which .* float32"):
        make(KINDS[0], PLAIN, of_rate, past={"time": "at", "aggregates": [rate]})


def test_a_vector_is_no_key(build_features, dataset_of, frame):
    rows = frame(50, 0).with_columns(text=pl.Series([[1.0] * DIM] * 50))

    with pytest.raises(RequestError, match=r"keys\[0\]: wanted a column of single values"):
        build_features(dataset_of([PLAIN], keys=["text"]), {"train": rows, "test": rows})
