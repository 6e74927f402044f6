"""What a report counts of labels and samples of numbers, beyond the plain case."""

import json
import math

import numpy as np
import polars as pl
import pytest

from pipelines.report.tally import sample_numbers
from pipelines.report.task_tally import TaskCounts, add_labels
from recsys_moe.spec import FeatureSpec, Task


@pytest.mark.parametrize("seed", range(5))
def test_weighted_labels_and_regressions_are_plain_means(seed: int):
    draw = np.random.default_rng(seed)
    tasks = (
        Task(name="click", label="click"),
        Task(name="watch", label="watch", space="click", kind="regression"),
    )
    spec = FeatureSpec(dataset="x", columns=(), tables=(), features=(), tasks=tasks, train_rows=1)
    labels = np.stack([draw.integers(0, 2, 500), draw.gamma(2, 30, 500)], axis=1)
    known = draw.choice([0, 0.5, 1, 4], size=(500, 2))
    labels[known == 0] = 0
    counts = {task.name: TaskCounts(kind=task.kind) for task in tasks}

    for part in np.array_split(np.arange(500), 3):
        arrays = labels[part].astype(np.float32), known[part].astype(np.float32)
        add_labels(spec, counts, *arrays, times=None)

    click, watch = counts["click"].report(), counts["watch"].report()
    seen = [(y, w) for y, w in zip(labels[:, 0], known[:, 0], strict=True) if w > 0]
    mean = math.fsum(y for y, _ in seen) / len(seen)
    weighted = math.fsum(w * y for y, w in seen) / math.fsum(w for _, w in seen)
    assert (click["rows"], click["known"]) == (500, len(seen))
    assert click["rate"] == pytest.approx(mean, abs=1e-9)
    assert click["weighted_rate"] == pytest.approx(weighted, abs=1e-9)
    inside = labels[:, 0] == 1
    times = labels[inside & (known[:, 1] > 0), 1]
    assert (watch["rows"], watch["known"]) == (inside.sum(), len(times))
    assert watch["mean"] == pytest.approx(times.mean(), rel=1e-6)
    assert watch["std"] == pytest.approx(times.std(), rel=1e-6)
    assert "rate" not in watch
    assert "positives" not in watch


def test_the_sample_of_train_has_no_rhythm(build_features, dataset_of):
    count = 300_000  # every second row: of a page of two places it would see one
    place = np.arange(count) % 2
    frame = pl.DataFrame({"place": place, "click": place, "fold": ["a"] * count})
    ends = frame.head(40).with_columns(fold=pl.Series(["b", "b", "c", "c"] * 10))
    value = dataset_of(
        [{"kind": "numeric", "name": "place", "column": "place"}],
        source={"format": "parquet", "path": "all.parquet"},
        split={"by": "column", "column": "fold", "train": ["a"], "valid": ["b"], "test": ["c"]},
    )
    output = build_features(value, {"all": pl.concat([frame, ends])})

    sample = sample_numbers(FeatureSpec.load(output / "feature_spec.json"), output)["place"]

    assert len(sample) == count // 2
    assert (sample > 0).mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("correct", ["shift", "weight"])
def test_thinned_negatives_are_no_drift_of_the_label(build_features, dataset_of, correct: str):
    draw = np.random.default_rng(1)
    word = draw.integers(0, 9, 20_000).astype(str)
    frame = pl.DataFrame({"word": word, "click": draw.random(20_000) < 0.3})
    sampling = {"negatives_of": "click", "keep_rate": 0.25, "correct": correct, "seed": 3}
    value = dataset_of([{"kind": "categorical", "columns": ["word"]}], sampling=sampling)

    report = json.loads(
        (build_features(value, {"train": frame, "test": frame}) / "report.json").read_text()
    )

    train, test = (report["splits"][split]["tasks"]["click"] for split in ("train", "test"))
    name = "unsampled_rate" if correct == "shift" else "weighted_rate"
    assert train["rate"] > 0.5
    assert train[name] == pytest.approx(0.3, abs=0.02)
    assert test.keys() & {"unsampled_rate", "weighted_rate"} == set()
    assert [w["level"] for w in report["warnings"] if w["about"] == "task click"] == ["note"]
