"""Features of expressions: from the dataset file through tensors to the exported graph."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest

from export.columns import raw_feeds
from export.expression_reference import evaluate
from export.faults import Faults
from export.feeds import build_feeds, graph_inputs
from export.fuzz import fuzzed_rows
from export.graph import open_graph
from export.preprocess import preprocess_model
from export.reference import ReferenceEncoder
from pipelines.encoding.encode import codes, numbers
from recsys_moe.errors import SpecError
from recsys_moe.expression import parse
from recsys_moe.spec import FeatureSpec, Numeric

ROWS = 10_000
HALF = [-2.0, -0.25, 0.0, 0.5, 1.0, 3.0, 10.5]
FEATURES: list[dict[str, Any]] = [
    {"kind": "numeric", "columns": ["price"]},
    {
        "kind": "numeric",
        "name": "to_shipping",
        "expression": "log1p(price) - log1p(shipping)",
        "missing_flag": True,
    },
    {
        "kind": "numeric",
        "name": "total",
        "expression": "price + coalesce(shipping, 0)",
        "transform": "sqrt",
        "domain": [0, 1000],
        "missing": "median",
    },
    {"kind": "numeric", "name": "num_tags", "expression": "len(tags)", "scale": "minmax"},
    {"kind": "numeric", "name": "at_home", "expression": 'country == col("home.country")'},
    {"kind": "numeric", "name": "near", "expression": "country in ('de', 'at')", "scale": "none"},
    {"kind": "numeric", "name": "again", "expression": "len(tags)", "log1p": True},
    {"kind": "categorical", "columns": ["tags"], "max_len": 2},
    {
        "kind": "bucketized",
        "name": "part_of_day",
        "expression": "hour(shown_at + 3600000000)",
        "edges": [5, 11, 17, 22],
    },
    {
        "kind": "bucketized",
        "name": "half",
        "expression": "(price - shipping) / 2",
        "edges": HALF,
    },
    {"kind": "bucketized", "name": "third", "expression": "price / 3", "num_buckets": 8},
]


def frame(rows: int, seed: int) -> pl.DataFrame:
    """Return rows with values that are whole halves, so that many results lie on an edge."""
    draw = random.Random(seed)
    prices = [None, float("nan"), 0.0, -1.0, 0.5, 1.0, 2.0, 7.0, 21.0, 500.0, 2000.0]
    return pl.DataFrame(
        {
            "price": pl.Series(draw.choices(prices, k=rows), dtype=pl.Float32),
            "shipping": pl.Series(draw.choices(prices[:8], k=rows), dtype=pl.Float32),
            "shown_at": [
                draw.choice([None, draw.randrange(1_700_000_000_000_000, 1_700_600_000_000_000)])
                for _ in range(rows)
            ],
            "country": draw.choices([None, "", "de", "at", "fr"], k=rows),
            "home.country": draw.choices([None, "de", "at", "it"], k=rows),
            "tags": [
                draw.choice([None, [], ["a"], ["a", None, "c"], list("abcdefg")])
                for _ in range(rows)
            ],
            "click": draw.choices([0, 1], k=rows),
        },
        schema_overrides={"shown_at": pl.Int64},
    )


@pytest.fixture
def built(build_features: Callable[..., Path], dataset_of: Callable[..., dict]) -> Path:
    return build_features(
        dataset_of(FEATURES), {"train": frame(2_000, seed=1), "test": frame(500, seed=2)}
    )


def test_tensors_are_the_plain_python_ones(built: Path) -> None:
    spec = FeatureSpec.load(built / "feature_spec.json")
    reference = ReferenceEncoder(spec, built)
    for split in ("train", "valid", "test"):
        prepared = pl.read_parquet(built / "prepared" / split / "*.parquet")
        expected_codes, expected_numbers = reference(prepared)
        made = np.load(built / "tensors" / split / "codes.npy")
        np.testing.assert_array_equal(made, expected_codes)
        made = np.load(built / "tensors" / split / "numbers.npy")
        np.testing.assert_allclose(made, expected_numbers, rtol=0, atol=1e-6)


def test_pipeline_graph_and_plain_python_agree_on_fuzzed_rows(built: Path, tmp_path: Path) -> None:
    spec = FeatureSpec.load(built / "feature_spec.json")
    spec = replace(spec, features=tuple(f for f in spec.features if f.name != "tags"))
    sample = pl.read_parquet(built / "prepared" / "train" / "*.parquet")
    fuzzed = fuzzed_rows(spec, built, sample, ROWS)
    onnx.save(preprocess_model(spec, built), tmp_path / "preprocess.onnx")
    session = open_graph(tmp_path / "preprocess.onnx")

    graph_codes, graph_numbers = session.run(None, raw_feeds(fuzzed, spec.columns))

    expected_codes, expected_numbers = ReferenceEncoder(spec, built)(fuzzed)
    for way in (graph_codes, codes(fuzzed, spec, {})):
        np.testing.assert_array_equal(way, expected_codes)
    for way in (graph_numbers, numbers(fuzzed, spec)):
        np.testing.assert_allclose(way, expected_numbers, rtol=0, atol=1e-6)


def test_scales_are_those_of_the_results_on_train(built: Path) -> None:
    spec = FeatureSpec.load(built / "feature_spec.json")
    train = pl.read_parquet(built / "prepared" / "train" / "*.parquet")
    feature = next(f for f in spec.numeric_features if f.name == "to_shipping")
    tree = parse("log1p(price) - log1p(shipping)")
    results = [evaluate(tree, row) for row in train.iter_rows(named=True)]
    known = np.array([value for value in results if value is not None])

    assert isinstance(feature, Numeric)
    assert feature.columns == ("price", "shipping")
    assert feature.center == pytest.approx(known.mean(), rel=1e-8)
    assert feature.scale == pytest.approx(1 / known.std(), rel=1e-8)


def test_a_result_on_an_edge_belongs_to_the_bucket_below(built: Path, tmp_path: Path) -> None:
    spec = FeatureSpec.load(built / "feature_spec.json")
    slot = [f.name for f in spec.code_features for _ in range(f.num_slots)].index("half")
    rows = (
        frame(len(HALF), seed=3)
        .drop("click")
        .with_columns(
            price=pl.Series([2 * edge + 1 for edge in HALF], dtype=pl.Float32),
            shipping=pl.lit(1.0, pl.Float32),
        )
    )
    onnx.save(preprocess_model(spec, built), tmp_path / "preprocess.onnx")

    graph_codes, _ = open_graph(tmp_path / "preprocess.onnx").run(
        None, raw_feeds(rows, spec.columns)
    )

    half = next(f for f in spec.code_features if f.name == "half")
    alone = replace(spec, features=(half,))
    expected = [2 + place for place in range(len(HALF))]
    assert graph_codes[:, slot].tolist() == expected
    assert codes(rows, alone, {})[:, 0].tolist() == expected


def test_one_row_alone_is_encoded_as_among_others(built: Path) -> None:
    spec = FeatureSpec.load(built / "feature_spec.json")
    rows = pl.read_parquet(built / "prepared" / "test" / "*.parquet").head(50)

    one_by_one = np.concatenate([numbers(rows[place], spec) for place in range(50)])

    np.testing.assert_array_equal(one_by_one, numbers(rows, spec))


def test_a_list_that_is_counted_is_sent_whole(built: Path) -> None:
    spec = FeatureSpec.load(built / "feature_spec.json")
    rows = pl.DataFrame({"tags": [list("abcdefg"), None, ["a"]]})
    inputs = [item for item in graph_inputs(spec.columns, spec) if item.name == "tags"]

    feeds = build_feeds(rows, inputs, Faults.none(3))

    assert feeds["tags_len"].tolist() == [7, 0, 1]


@pytest.mark.parametrize(
    ("entry", "path", "words"),
    [
        ({"expression": "log(prise)"}, "expression", "'prise'"),
        ({"expression": "lgo(price)"}, "expression", "at position 1 a function, got 'lgo'. Did"),
        ({"expression": "country + 1"}, "expression", "at position 1 a number, got a string"),
        ({"expression": "len(price)"}, "expression", "a column of lists in len"),
        ({"expression": "click + price"}, "expression", "'click', the label of 'click'"),
        ({"expression": "price", "column": "price"}, "column", "either this or expression"),
        ({"expression": "price", "columns": ["price"]}, "columns", "either this or expression"),
        ({"expression": 3}, "expression", "a name, got 3"),
        ({"expression": "price", "name": None}, "name", "a name, got nothing"),
        ({"expression": "price", "scal": "none"}, "scal", "wanted one of"),
        (
            {"expression": "price", "kind": "bucketized", "edges": [1], "allow_inf": True},
            "allow_inf",
            "no result of an expression is infinite",
        ),
        ({"expression": "price", "kind": "hashed", "num_buckets": 3}, "expression", "one of"),
    ],
)
def test_a_wrong_expression_is_a_fault_of_the_dataset_file(
    entry: dict[str, Any],
    path: str,
    words: str,
    build_features: Callable[..., Path],
    dataset_of: Callable[..., dict],
) -> None:
    value = dataset_of([{"kind": "numeric", "name": "x", **entry}])

    with pytest.raises(SpecError) as caught:
        build_features(value, {"train": frame(60, seed=1), "test": frame(20, seed=2)})

    assert f"features[0].{path}: " in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"column": "price"}, "wanted a column or an expression, got both"),
        ({"expression": None}, "wanted a column or an expression, got neither"),
        ({"expression": "prise + 1"}, "wanted a name of the spec, got 'prise'"),
        ({"expression": "lgo(price)"}, "a function, got 'lgo'"),
    ],
)
def test_a_spec_with_a_wrong_expression_is_refused(
    change: dict[str, Any], words: str, built: Path
) -> None:
    value = FeatureSpec.load(built / "feature_spec.json").to_dict()
    value["features"][1] |= change

    with pytest.raises(SpecError, match=words):
        FeatureSpec.from_dict(value)
