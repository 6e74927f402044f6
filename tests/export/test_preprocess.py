"""`preprocess.onnx` is the feature spec, to the bit, whatever the columns hold."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import polars_hash as plh
import pytest

from export.columns import raw_feeds
from export.fuzz import fuzzed_rows, missing_rows
from export.graph import open_graph
from export.preprocess import preprocess_model
from export.reference import ReferenceEncoder
from pipelines.encoding import encode
from pipelines.fitting.vocabulary import read_vocabulary
from recsys_moe.errors import SpecError
from recsys_moe.spec import (
    INT64_MISSING,
    Bucketized,
    Categorical,
    Column,
    Crossed,
    FeatureSpec,
    Numeric,
)

ROWS = 10_000
KINDS = {
    "fitted strings": ["city"],
    "fitted integers": ["item"],
    "hashed integers": ["user"],
    "hashed strings, an empty vocabulary": ["rare", "same"],
    "lists of a shared table": ["history", "item"],
    "lists in two tables": ["tags", "tags_hashed"],
    "lists and scalars of one hashed table": ["tags_hashed", "rare"],
    "crosses": ["city_item", "three"],
    "last elements of lists": ["history_last", "history", "tags_last", "tags"],
    "numbers": ["price", "age", "ratio"],
    "numbers with roots, domains and stand-ins": ["age_root", "ratio_cut"],
    "buckets": ["age_bin", "price_bin", "ratio_bin"],
    "buckets of infinite numbers": ["price_inf", "price_bin"],
    "all": [],
}


def run_graph(spec: FeatureSpec, folder: Path, place: Path, feeds: dict) -> tuple:
    onnx.save(preprocess_model(spec, folder), place / "preprocess.onnx")
    return open_graph(place / "preprocess.onnx").run(["codes", "numbers"], feeds)


@pytest.mark.parametrize("kind", KINDS)
def test_graph_reference_and_pipeline_agree(
    kind: str, spec: FeatureSpec, run: Path, tmp_path: Path
) -> None:
    features = tuple(f for f in spec.features if f.name in KINDS[kind]) or spec.features
    spec = replace(spec, features=features)
    frame = fuzzed_rows(spec, run, pl.DataFrame(), ROWS, seed=len(kind))

    codes, numbers = run_graph(spec, run, tmp_path, raw_feeds(frame, spec.columns))

    for expected_codes, expected_numbers in (
        ReferenceEncoder(spec, run)(frame),
        encoded_by_the_pipeline(frame, spec, run),
    ):
        np.testing.assert_array_equal(codes, expected_codes)
        np.testing.assert_allclose(numbers, expected_numbers, rtol=0, atol=1e-6)
    assert codes.dtype == np.int32
    assert numbers.dtype == np.float32


def encoded_by_the_pipeline(frame: pl.DataFrame, spec: FeatureSpec, folder: Path) -> tuple:
    """Codes and numbers of raw rows, whose missing markers the pipeline reads as null."""
    markers = {"string": "", "int64": INT64_MISSING}

    def known(value: pl.Expr, column: Column) -> pl.Expr:
        return pl.when(value != markers[column.type]).then(value)

    plain = frame.with_columns(
        pl.col(c.name).list.eval(known(pl.element(), c)) if c.is_list else known(pl.col(c.name), c)
        for c in spec.columns
        if c.type != "float32"
    )
    vocabularies = {
        table.name: read_vocabulary(folder / table.vocabulary)
        for table in spec.tables
        if table.vocabulary
    }
    return encode.codes(plain, spec, vocabularies), encode.numbers(plain, spec)


def test_the_graph_is_an_oracle_of_polars_expressions(
    spec: FeatureSpec, run: Path, tmp_path: Path
) -> None:
    frame = fuzzed_rows(spec, run, pl.DataFrame(), 2_000, seed=11)
    graph_codes, graph_numbers = run_graph(spec, run, tmp_path, raw_feeds(frame, spec.columns))
    slot = place = 0
    for feature in spec.features:
        if isinstance(feature, Numeric):
            values = graph_numbers[:, place : place + feature.num_numbers]
            np.testing.assert_allclose(values, oracle_numbers(frame, feature), rtol=0, atol=1e-6)
            place += feature.num_numbers
        elif isinstance(feature, Bucketized):
            np.testing.assert_array_equal(graph_codes[:, slot], oracle_buckets(frame, feature))
            slot += 1
        elif isinstance(feature, Crossed):
            np.testing.assert_array_equal(graph_codes[:, slot], oracle_cross(frame, spec, feature))
            slot += 1
        else:
            codes = graph_codes[:, slot : slot + feature.num_slots]
            np.testing.assert_array_equal(codes, oracle_codes(frame, spec, run, feature))
            slot += feature.num_slots


def oracle_codes(
    frame: pl.DataFrame, spec: FeatureSpec, folder: Path, feature: Categorical
) -> np.ndarray:
    table, column = spec.table(feature.table), spec.column(feature.column)
    rows = frame.select(row=pl.int_range(pl.len()), value=feature.column)
    if column.is_list:
        cells = pl.col("value").list
        kept = cells.tail if feature.keep == "last" else cells.head
        rows = rows.with_columns(kept(feature.max_len))
        rows = rows.filter(pl.col("value").list.len() > 0).explode("value")
    else:
        rows = rows.with_columns(pl.col("value"))
    rows = rows.with_columns(slot=pl.int_range(pl.len()).over("row"))
    hashed = plh.col("value").cast(pl.String).nchash.murmur32() % table.num_oov + 2
    rows = rows.with_columns(code=hashed.cast(pl.Int64))
    if table.vocabulary:
        known = pl.read_parquet(folder / table.vocabulary).select("value", listed="code")
        known = known.cast({"value": rows["value"].dtype})
        rows = rows.join(known, on="value", how="left")
        rows = rows.with_columns(code=pl.coalesce("listed", "code"))
    marker = "" if column.type == "string" else INT64_MISSING
    missing = pl.col("value").is_null() | (pl.col("value") == marker)
    rows = rows.with_columns(pl.when(missing).then(1).otherwise("code").alias("code"))
    codes = np.zeros((frame.height, feature.num_slots), np.int64)
    codes[rows["row"].to_numpy(), rows["slot"].to_numpy()] = rows["code"].to_numpy()
    return codes


def oracle_cross(frame: pl.DataFrame, spec: FeatureSpec, feature: Crossed) -> list[int]:
    rows = frame.select(
        pl.when(pl.col(name) != ("" if spec.column(name).type == "string" else INT64_MISSING))
        .then(pl.col(name))
        .cast(pl.String)
        for name in feature.columns
    )
    text = plh.concat_str(pl.all().fill_null("\0null"), separator="\x1f")
    code = text.nchash.murmur32() % spec.table(feature.table).num_oov + 2
    missing = pl.all_horizontal(pl.all().is_null())
    return rows.select(pl.when(missing).then(1).otherwise(code)).to_series().to_list()


def oracle_buckets(frame: pl.DataFrame, feature: Bucketized) -> list[int]:
    missing = pl.col(feature.column).is_in([INT64_MISSING]) if is_whole(frame, feature) else False
    values = frame.select(
        pl.when(missing).then(None).otherwise(pl.col(feature.column)).cast(pl.Float64)
    ).to_series()
    edges = np.array(feature.edges, np.float32).astype(np.float64)
    return [
        1
        if v is None or math.isnan(v) or math.isinf(v) > feature.allow_inf
        else 2 + int(np.searchsorted(edges, v, side="left"))
        for v in values
    ]


def oracle_numbers(frame: pl.DataFrame, feature: Numeric) -> np.ndarray:
    value = pl.col(feature.column)
    known = value.is_not_null()
    known &= value != INT64_MISSING if is_whole(frame, feature) else value.is_finite()
    number = value.cast(pl.Float64)
    known &= number.is_between(*feature.bounds)
    if feature.transform != "identity":
        number = number.clip(lower_bound=0)
        number = number.log1p() if feature.transform == "log1p" else number.sqrt()
    scaled = ((number - feature.center) * feature.scale).clip(-feature.clip, feature.clip)
    known = known.fill_null(value=False)
    columns = [pl.when(known).then(scaled).otherwise(feature.fill).alias("value")]
    columns += [(~known).cast(pl.Float64).alias("flag")] if feature.missing_flag else []
    return frame.select(columns).to_numpy()


def is_whole(frame: pl.DataFrame, feature: Numeric | Bucketized) -> bool:
    return frame[feature.column].dtype == pl.Int64


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_nothing_known_is_codes_of_one_and_empty_lists(
    rows: int, spec: FeatureSpec, run: Path, tmp_path: Path
) -> None:
    frame = missing_rows(spec, rows)  # all lists empty: their arrays are [rows, 0]

    codes, numbers = run_graph(spec, run, tmp_path, raw_feeds(frame, spec.columns))

    lists = [
        isinstance(f, Categorical) and f.max_len is not None
        for f in spec.code_features
        for _ in range(f.num_slots)
    ]
    np.testing.assert_array_equal(codes, np.tile(np.where(lists, 0, 1), (rows, 1)))
    assert numbers.shape == (rows, spec.num_numbers)
    stand_ins = {f.fill for f in spec.numeric_features}
    assert set(numbers.ravel()) <= {0.0, 1.0} | stand_ins


def test_cells_past_the_length_do_not_matter(spec: FeatureSpec, run: Path, tmp_path: Path) -> None:
    frame = fuzzed_rows(spec, run, pl.DataFrame(), 300, seed=2)
    feeds = raw_feeds(frame, spec.columns)
    codes, _ = run_graph(spec, run, tmp_path, feeds)
    for name, junk in (("history", 5), ("tags", "a")):
        ids = np.concatenate([feeds[f"{name}_ids"]] * 2, axis=1)
        past = np.arange(ids.shape[1]) >= feeds[f"{name}_len"][:, None]
        ids[past] = junk
        feeds[f"{name}_ids"] = ids

    np.testing.assert_array_equal(run_graph(spec, run, tmp_path, feeds)[0], codes)


@pytest.mark.parametrize("names", [["city", "history"], ["price"]])
def test_a_side_without_features_is_empty(
    names: list[str], spec: FeatureSpec, run: Path, tmp_path: Path
) -> None:
    spec = replace(spec, features=tuple(f for f in spec.features if f.name in names))
    feeds = raw_feeds(fuzzed_rows(spec, run, pl.DataFrame(), 5), spec.columns)

    codes, numbers = run_graph(spec, run, tmp_path, feeds)

    assert codes.shape == (5, spec.num_slots)
    assert numbers.shape == (5, spec.num_numbers)


def test_a_shared_vocabulary_is_in_the_graph_once(spec: FeatureSpec, run: Path) -> None:
    model = preprocess_model(spec, run)

    look_ups = [node for node in model.graph.node if node.op_type == "LabelEncoder"]

    kinds = {
        (f.table, spec.column(f.column).type) for f in spec.features if isinstance(f, Categorical)
    }
    assert len(look_ups) == len(kinds)


@pytest.mark.parametrize("name", ["", "codes", "p_click", "logit_x", "history_len", "a::b"])
def test_a_column_may_not_take_an_inner_name(name: str, spec: FeatureSpec, run: Path) -> None:
    spec = replace(spec, columns=(*spec.columns, Column(name=name, type="string")))

    with pytest.raises(SpecError, match="wanted a name of its own"):
        preprocess_model(spec, run)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"code": [9, 10, 11]}, "the codes 6 to 8 in order"),
        ({"value": ["a", "", "b"]}, "no missing marker"),
        ({"value": [1.5, 2.5, 3.5]}, "strings or int64"),
    ],
)
def test_a_vocabulary_that_is_not_the_specs_is_refused(
    change: dict, wanted: str, spec: FeatureSpec, tmp_path: Path
) -> None:
    spec = replace(spec, features=tuple(f for f in spec.features if f.name == "tags"))
    (tmp_path / "vocab").mkdir()
    content = {"value": ["a", "b", "c"], "count": [3, 2, 1], "code": [6, 7, 8], **change}
    pl.DataFrame(content).write_parquet(tmp_path / "vocab" / "tag.parquet")

    with pytest.raises(SpecError, match=wanted):
        preprocess_model(spec, tmp_path)
