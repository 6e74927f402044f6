"""Vectors through the whole line: raw rows, features, a trained model, an artifact, scores."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

from export import score, to_onnx
from export.columns import raw_feeds
from export.faults import Faults, Reason
from export.feeds import Input, build_feeds, check_columns
from export.graph import open_graph
from export.sample import tensor_from_json
from export.score import Scorer
from pipelines import build
from recsys_moe import train
from recsys_moe.errors import RequestError
from recsys_moe.spec import Column, FeatureSpec

DIM = 6
VECTORS = {"text": pl.List(pl.Float64), "image": pl.List(pl.Float32), "cover": pl.Array}
FEATURES = [
    {"kind": "categorical", "column": "user"},
    {"kind": "vector", "column": "text", "dim": DIM, "normalize": "l2", "missing_flag": True},
    {"kind": "vector", "column": "image", "dim": DIM},
    {"kind": "vector", "column": "cover", "dim": DIM, "missing_flag": True},
]
INPUT = Input(Column(name="x", type="float32", dim=2))


def raw_rows(rows: int, seed: int) -> pl.DataFrame:
    """Rows whose clicks follow their first vector; a few vectors are missing."""
    draw = np.random.default_rng(seed)
    numbers = draw.normal(size=(rows, DIM)).astype(np.float32).astype(float)
    click = (numbers[:, 0] + draw.normal(size=rows) / 4 > 0).astype(int)
    text = numbers.tolist()
    text[3], text[7] = None, [math.nan, *text[7][1:]]
    return pl.DataFrame(
        {
            "user": draw.integers(0, 30, rows),
            "text": pl.Series(text, dtype=pl.List(pl.Float64)),
            "image": pl.Series(text, dtype=pl.List(pl.Float32)),
            "cover": pl.Series(text, dtype=pl.Array(pl.Float64, DIM)),
            "click": click,
        }
    )


def run(module: object, *arguments: str) -> int:
    sys.argv = ["command", *arguments]
    try:
        module.main()  # type: ignore[attr-defined]
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with raw rows, `features`, a `run` and its `artifact`."""
    folder = tmp_path_factory.mktemp("line")
    for seed, split in enumerate(("train", "test")):
        raw_rows(2_000, seed).write_parquet(folder / f"{split}.parquet", row_group_size=300)
    value = {
        "name": "vectors",
        "source": {"format": "parquet", "train": "train.parquet", "test": "test.parquet"},
        "split": {"by": "file", "valid_share": 0.2, "seed": 1},
        "tasks": [{"name": "click", "label": "click"}],
        "features": FEATURES,
    }
    conf = folder / "dataset"
    conf.mkdir()
    value["source"] |= {split: str(folder / f"{split}.parquet") for split in ("train", "test")}
    (conf / "vectors.yaml").write_text(yaml.safe_dump(value))
    features, model, artifact = (folder / name for name in ("features", "run", "artifact"))
    settings = ["batch_size=128", "max_epochs=3", "model=shared_bottom"]
    assert run(build, "--config-dir", str(folder), "dataset=vectors", f"output={features}") == 0
    assert run(train, f"features={features}", f"output={model}", *settings) == 0
    assert run(to_onnx, f"run={model}", f"output={artifact}") == 0
    return folder


def job(line: Path, frame: pl.DataFrame, place: Path, *more: str) -> tuple[int, pl.DataFrame]:
    """Score rows by the job; return its exit code and the predictions in order."""
    place.mkdir()
    frame.write_parquet(place / "rows.parquet", row_group_size=100)
    output = place / "out"
    arguments = [f"artifact={line / 'artifact'}", f"input={place / 'rows.parquet'}"]
    code = run(score, *arguments, f"output={output}", *more)
    return code, pl.read_parquet(output / "parts" / "*.parquet") if code == 0 else pl.DataFrame()


def test_a_model_learns_from_vectors_and_every_way_to_score_agrees(line, tmp_path):
    frame = raw_rows(500, seed=9)
    scorer = Scorer(line / "artifact")

    found = scorer.predict(frame)

    _, scored = job(line, frame, tmp_path / "job")
    assert_frame_equal(scored.select(found.columns), found, abs_tol=1e-6)
    up, down = (found["p_click"].filter(frame["click"] == label).mean() for label in (1, 0))
    assert up > down + 0.3
    mapping = {name: frame[name].to_list() for name in ("user", *VECTORS)}
    assert_frame_equal(scorer.predict(mapping), found, abs_tol=1e-6)
    assert_frame_equal(scorer.predict(frame.to_pandas()), found, abs_tol=1e-6)
    whole = frame.filter(pl.int_range(pl.len()) > 10)
    matrix = np.array(whole["image"].to_list(), np.float32)
    arrays = {"user": whole["user"], **dict.fromkeys(VECTORS, matrix)}
    assert_frame_equal(scorer.predict(arrays), found[11:], abs_tol=1e-6)


def test_features_and_scoring_see_the_same_rows(line):
    prepared = pl.read_parquet(line / "features" / "prepared" / "test" / "*.parquet")
    raw = pl.read_parquet(line / "test.parquet")
    scorer = Scorer(line / "artifact")

    assert len(prepared) == len(raw)
    assert_frame_equal(scorer.predict(prepared), scorer.predict(raw), abs_tol=1e-6)


def test_a_vector_is_missing_in_any_of_its_ways_alike(line):
    vectors = [None, [math.nan] * DIM, [1.0] * 5 + [None], [math.nan] + [1.0] * 5]
    rows = pl.DataFrame(
        {"user": [1] * 4} | {n: pl.Series(vectors, dtype=pl.List(pl.Float64)) for n in VECTORS}
    )

    found = Scorer(line / "artifact").predict(rows)

    assert found["p_click"].null_count() == 0
    assert found["p_click"].n_unique() == 1
    empty = rows.with_columns(pl.lit(None).alias(name) for name in VECTORS)
    assert_frame_equal(Scorer(line / "artifact").predict(empty), found)


def test_a_vector_of_another_length_is_quarantined_and_harms_no_other(line, tmp_path):
    frame = raw_rows(300, seed=4)
    misfits = {20: [], 150: [1.0] * (DIM + 1), 299: [1.0]}
    broken = [misfits.get(row, vector) for row, vector in enumerate(frame["text"].to_list())]
    rows = frame.with_columns(text=pl.Series(broken, dtype=pl.List(pl.Float64)))

    code, scored = job(line, rows, tmp_path / "job")

    good = [row for row in range(300) if row not in misfits]
    assert code == 0
    assert scored["row_id"].to_list() == good
    bad = pl.read_parquet(tmp_path / "job" / "out" / "quarantine" / "*.parquet")
    assert bad["row_id"].to_list() == list(misfits)
    assert bad["text"].to_list() == list(misfits.values())
    success = json.loads((tmp_path / "job" / "out" / "_SUCCESS.json").read_text())
    assert success["rows_in"] == 300
    assert success["reasons"] == {"vector_length": 3}
    assert set(bad.select(pl.last()).to_series()) == {f"vector text: wanted {DIM} numbers"}
    found = Scorer(line / "artifact").predict(rows)["p_click"]
    assert found.is_null().arg_true().to_list() == list(misfits)
    wanted = Scorer(line / "artifact").predict(frame)["p_click"]
    np.testing.assert_allclose(found[good], wanted[good], atol=1e-6)


def test_a_column_that_holds_no_such_vectors_is_a_wrong_request(line, tmp_path, capfd):
    frame = raw_rows(10, seed=4)
    for column in (
        pl.Series("text", [[1.0] * 4] * 10, dtype=pl.Array(pl.Float32, 4)),
        pl.Series("text", [["a"]] * 10),
        pl.Series("text", [1.0] * 10),
    ):
        with pytest.raises(RequestError, match=f"'text': wanted vectors of {DIM} numbers, got"):
            Scorer(line / "artifact").predict(frame.with_columns(column))
    code, _ = job(line, frame.drop("text"), tmp_path / "job")
    assert code == 2
    assert f"column 'text': wanted vectors of {DIM} numbers" in capfd.readouterr().err


def test_the_sample_request_gives_the_sample_response(line):
    artifact = line / "artifact"
    request, response = (
        json.loads((artifact / "sample" / f"{name}.json").read_text())
        for name in ("request", "response")
    )
    feeds = {entry["name"]: tensor_from_json(entry) for entry in request["inputs"]}

    (found,) = open_graph(artifact / "model.onnx").run(["p_click"], feeds)

    np.testing.assert_array_equal(found, np.float32(response["outputs"][0]["data"]))
    assert feeds["image"].shape == (16, DIM)
    spec = FeatureSpec.load(artifact / "feature_spec.json")
    frame = pl.read_parquet(artifact / "sample" / "input.parquet")
    for name, feed in raw_feeds(frame, spec.columns).items():
        np.testing.assert_array_equal(feeds[name], feed)
    assert f"| `text` | vector of {DIM} float32 |" in (artifact / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize(
    "series",
    [
        pl.Series([[1, 2], None], dtype=pl.List(pl.Int32)),
        pl.Series([["1", "2"], None]).cast(pl.List(pl.Decimal(9, 2))),
        pl.Series([[1.0, 2.0], None], dtype=pl.Array(pl.Float64, 2)),
        pl.Series([[1.0, 2.0], [3.0, None]], dtype=pl.List(pl.Float32)),
        pl.Series([[1.0, 2.0], [math.nan, 3.0]], dtype=pl.List(pl.Float64)),
    ],
)
def test_every_accepted_type_arrives_as_a_matrix(series):
    frame, faults = series.alias("x").to_frame(), Faults.none(2)
    check_columns(frame.schema, [INPUT], "input")

    found = build_feeds(frame, [INPUT], faults)["x"]

    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.float32([[1, 2], [math.nan, math.nan]]))
    assert faults.good.all()


def test_an_infinite_number_in_a_vector_is_a_fault_of_its_row_as_it_is_alone():
    vectors = [[1.0, 2.0], [-math.inf, 1.0], None, [1e300, math.nan]]
    frame, faults = pl.DataFrame({"x": vectors}), Faults.none(4)

    found = build_feeds(frame, [INPUT], faults)["x"]

    assert faults.details == {1: ["x"], 3: ["x"]}
    assert faults.flags.tolist() == [0, Reason.INFINITE_NUMBER, 0, Reason.INFINITE_NUMBER]
    assert np.isnan(found[1:]).all()


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("kind", [pl.Null, pl.List(pl.Null), pl.List(pl.Float64)])
def test_nothing_is_a_matrix_of_nan(kind, rows):
    frame, faults = pl.DataFrame({"x": pl.Series([None] * rows, dtype=kind)}), Faults.none(rows)
    check_columns(frame.schema, [INPUT], "input")

    found = build_feeds(frame, [INPUT], faults)["x"]

    np.testing.assert_array_equal(found, np.full((rows, 2), np.nan, np.float32))
    assert faults.good.all()
