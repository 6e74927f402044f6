"""Four kinds of feedback and what the past says, from simulated logs to scored parquet."""

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from export import score, to_onnx
from export.parity import awkward_frame, check_parity
from pipelines import build
from recsys_moe import evaluate, train
from recsys_moe.checkpoint import load_model
from recsys_moe.spec import FeatureSpec

ROWS = 12_000
DAY = 86_400_000_000
OUTPUTS = ["p_click", "p_conversion", "p_like", "p_click_and_conversion", "y_dwell"]
PAST = ["clicked_item_id", "clicked_category", "item_click_rate", "user_click_rate"]


def run(module: object, *arguments: str) -> None:
    sys.argv = ["command", *arguments]
    module.main()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("feedback") / "features"
    run(build, "dataset=funnel_feedback", f"dataset.rows={ROWS}", f"output={folder}")
    return folder


def prepared(features: Path) -> pl.DataFrame:
    splits = [
        pl.read_parquet(features / "prepared" / split) for split in ("train", "valid", "test")
    ]
    return pl.concat(splits).sort("row_id")


def log(features: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(features / "raw" / name)


def test_labels_are_what_the_logs_say(features: Path) -> None:
    rows = prepared(features)
    clicked, liked = (set(log(features, name)["impression_id"]) for name in ("clicks", "likes"))
    seconds = dict(log(features, "dwell").select("impression_id", "seconds").iter_rows())
    ids = rows["impression_id"].to_list()

    assert ids == list(range(ROWS))
    assert rows["click"].to_list() == [one in clicked for one in ids]
    assert rows["like"].to_list() == [one in liked for one in ids]
    assert rows["dwell"].to_list() == [seconds.get(one) for one in ids]
    dwell = FeatureSpec.load(features / "feature_spec.json").task("dwell")
    assert (dwell.kind, dwell.transform, dwell.space) == ("regression", "log1p", "click")


def test_rates_are_those_at_the_midnight_before(features: Path) -> None:
    """Impressions of train count on their day, clicks when they came; 20 rows of the mean added."""
    rows, shown = prepared(features), log(features, "impressions")
    train_ids = set(pl.read_parquet(features / "prepared" / "train")["impression_id"])
    day = (shown["ts"].dt.epoch("us") // DAY).to_list()
    items = shown["item_id"].to_list()
    clicks = log(features, "clicks").with_columns(day=pl.col("ts").dt.epoch("us") // DAY)
    clicked = [(items[one], at) for one, _, at in clicks.iter_rows() if one in train_ids]
    prior = len(clicked) / len(train_ids)
    for number in range(0, ROWS, 97):
        item, today = items[number], day[number]
        came = sum(of == item and at < today for of, at in clicked)
        seen = sum(items[one] == item and day[one] < today for one in train_ids)
        rate = (came + 20 * prior) / (seen + 20)
        assert rows["item_click_rate"][number] == pytest.approx(rate, rel=1e-6)


def test_all_feedback_is_learnt_exported_and_scored(features: Path, tmp_path: Path) -> None:
    folder, artifact, output = (tmp_path / name for name in ("run", "artifact", "scored"))
    run(train, f"features={features}", f"output={folder}", "max_epochs=1", "batch_size=512")
    run(evaluate, f"run={folder}", f"features={features}")
    run(to_onnx, f"run={folder}", f"output={artifact}")
    run(score, f"artifact={artifact}", f"input={features / 'prepared/test'}", f"output={output}")

    model, spec = load_model(folder)
    assert set(PAST) <= {column.name for column in spec.columns}
    tasks = json.loads((folder / "evaluation.json").read_text())["tasks"]
    assert set(tasks) == {name[2:] for name in OUTPUTS}
    assert tasks["dwell"]["rows"] == tasks["click"]["positives"] == tasks["conversion"]["rows"]
    for name in ("click", "conversion", "like", "click_and_conversion"):
        assert tasks[name]["regret"] > 0
    scored = pl.read_parquet(output / "parts" / "*.parquet")
    assert scored.columns == ["impression_id", *OUTPUTS]
    assert scored["impression_id"].equals(
        pl.read_parquet(features / "prepared" / "test")["impression_id"]
    )
    assert (scored["p_click_and_conversion"] <= scored["p_click"]).all()
    assert np.isfinite(scored.to_numpy()).all()
    assert scored["y_dwell"].min() >= 0

    rows = awkward_frame(spec, folder, pl.read_parquet(folder / "sample.parquet"), rows=2_000)
    assert check_parity(artifact, model, spec, folder, rows, tolerance=1e-5).rows > 2_000
