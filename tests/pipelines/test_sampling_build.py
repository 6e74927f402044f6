"""The features command with amounts as labels and negatives thinned out, from files to tensors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.dataset.roles import Sampling
from pipelines.rows.sampling import kept
from recsys_moe.spec import FeatureSpec

RATE = 0.25
CLICK = {"name": "click", "label": "click"}
DWELL = {
    "name": "dwell",
    "label": "seconds",
    "kind": "regression",
    "transform": "log1p",
    "space": "click",
}
FEATURES = [{"kind": "categorical", "columns": ["item"]}]


def log(rows: int, seed: int) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    seconds = [None if x < 0.1 else float(np.float32(60 * x * x)) for x in draw.random(rows)]
    return pl.DataFrame(
        {
            "request": [f"r{seed}-{n}" for n in range(rows)],
            "item": draw.choice(["a", "b", "c"], rows),
            "click": (draw.random(rows) < 0.2).astype(int),
            "seconds": seconds,
        }
    )


@pytest.mark.parametrize("correct", ["shift", "weight"])
def test_train_alone_is_thinned_and_what_undoes_it_is_written(
    correct: str,
    build_features: Callable[..., Path],
    dataset_of: Callable[..., dict[str, Any]],
) -> None:
    value = dataset_of(
        FEATURES,
        tasks=[CLICK, DWELL],
        keys=["request"],
        sampling={"negatives_of": "click", "keep_rate": RATE, "correct": correct, "seed": 5},
    )
    frames = {"train": log(4000, 1), "test": log(500, 2)}

    out = build_features(value, frames)

    spec = FeatureSpec.load(out / "feature_spec.json")
    assert [task.keep_rate for task in spec.tasks] == [RATE if correct == "shift" else 1.0, 1.0]
    sampling = Sampling(task="click", keep_rate=RATE, correct="shift", seed=5)
    stays = kept(sampling, pl.col("click"), ["request"])
    logged, dropped = pl.concat(frames.values()), 0
    for split in ("train", "valid", "test"):
        rows = pl.read_parquet(out / "prepared" / split / "*.parquet")
        source = logged.filter(pl.col("request").is_in(rows["request"].implode()))
        assert source.filter(stays).height == source.height or split != "train"
        labels_NT = np.load(out / "tensors" / split / "labels.npy")
        known_NT = np.load(out / "tensors" / split / "known.npy")
        np.testing.assert_array_equal(labels_NT[:, 0], source["click"])
        np.testing.assert_array_equal(labels_NT[:, 1], source["seconds"].fill_null(0))
        weighs = correct == "weight" and split == "train"
        weight = np.where(source["click"] == 0, 1 / RATE, 1.0) if weighs else 1.0
        np.testing.assert_array_equal(known_NT[:, 0], np.broadcast_to(weight, source.height))
        np.testing.assert_array_equal(known_NT[:, 1], source["seconds"].is_not_null())
        dropped += source.height
    thinned = logged.height - dropped
    negatives = 4000 - frames["train"]["click"].sum()
    assert thinned / negatives == pytest.approx(0.7 * (1 - RATE), abs=0.03)  # 0.3 of them is valid
    report = json.loads((out / "report.json").read_text())
    assert report["splits"]["train"]["tasks"]["dwell"]["std"] > 0
    assert report["rows_in"] == report["rows_out"] + thinned


def test_an_amount_that_cannot_be_goes_to_quarantine(
    build_features: Callable[..., Path], dataset_of: Callable[..., dict[str, Any]]
) -> None:
    train = log(2000, 1).with_columns(
        seconds=pl.when(pl.col("request") == "r1-7")
        .then(-1.0)
        .when(pl.col("request") == "r1-9")
        .then(float("inf"))
        .when(pl.col("request") == "r1-11")
        .then(float("nan"))
        .otherwise("seconds")
    )

    out = build_features(
        dataset_of(FEATURES, tasks=[CLICK, DWELL]), {"train": train, "test": log(500, 2)}
    )

    bad = pl.read_parquet(out / "quarantine" / "*.parquet")
    assert bad["request"].to_list() == ["r1-7", "r1-9"]
    assert bad["reason"].unique().to_list() == ["label of dwell: not a finite number from 0 up"]
