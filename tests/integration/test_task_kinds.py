"""A regression and thinned-out negatives from training set to scored parquet."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from export import score, to_onnx
from export.manifest import Manifest
from export.sample import tensor_from_json
from export.score import Scorer
from recsys_moe import evaluate, train
from recsys_moe.checkpoint import load_model
from recsys_moe.datamodule import Split
from recsys_moe.files import finish
from recsys_moe.predict import predict_split
from recsys_moe.predictions import amounts, probabilities
from recsys_moe.spec import FeatureSpec, Task

OUTPUTS = ["p_click", "p_conversion", "p_click_and_conversion", "y_watch", "y_spend"]
SMALL = ["batch_size=32", "max_epochs=3", "model=shared_bottom", "optimizer.lr=0.02", "patience=0"]
RATE = 0.2


def run(module: object, *arguments: str) -> None:
    sys.argv = ["command", *arguments]
    module.main()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def features(make_features: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy features with seconds watched of every row and money spent of the clicked."""
    folder = tmp_path_factory.mktemp("kinds") / "features"
    shutil.copytree(make_features(rows=400), folder)
    spec = FeatureSpec.load(folder / "feature_spec.json")
    click, conversion = spec.tasks
    watch = Task(name="watch", label="watch", kind="regression", mean=20.0, scale=0.2)
    spend = Task(
        name="spend",
        label="spend",
        space="click",
        kind="regression",
        transform="log1p",
        mean=0.05,
        scale=1.5,
    )
    tasks = (replace(click, keep_rate=RATE), conversion, watch, spend)
    replace(spec, tasks=tasks).save(folder / "feature_spec.json")
    for split in ("train", "valid", "test"):
        tensors = folder / "tensors" / split
        labels, known = np.load(tensors / "labels.npy"), np.load(tensors / "known.npy")
        price = np.load(tensors / "numbers.npy")[:, 0]
        noise = np.random.default_rng(3).normal(size=len(price))
        more = np.c_[20 + 4 * price + noise, np.expm1(np.abs(price / 2))]
        there = np.c_[np.ones(len(price)), labels[:, 0] * 0.5]
        np.save(tensors / "labels.npy", np.c_[labels, more].astype(np.float32))
        np.save(tensors / "known.npy", np.c_[known, there].astype(np.float32))
    finish(folder, {"rows": 400})
    return folder


@pytest.fixture(scope="module")
def trained(features: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run and its artifact."""
    folder = tmp_path_factory.mktemp("trained")
    run(train, f"features={features}", f"output={folder / 'run'}", *SMALL)
    run(evaluate, f"run={folder / 'run'}", f"features={features}")
    run(to_onnx, f"run={folder / 'run'}", f"output={folder / 'artifact'}")
    return folder / "run", folder / "artifact"


def expected(run_folder: Path, features: Path) -> dict[str, np.ndarray]:
    """What the checkpoint says of the test rows, in float64 and without a graph."""
    model, spec = load_model(run_folder)
    logits, _, _ = predict_split(model, Split(features, "test", spec), batch_rows=64)
    p = {f"p_{name}": value for name, value in probabilities(spec, logits).items()}
    y = {f"y_{name}": value for name, value in amounts(spec, logits).items()}
    return {**p, **y, "logit_click": logits["click"] + math.log(RATE)}


def test_the_artifact_answers_as_the_checkpoint_does(
    trained: tuple[Path, Path], features: Path
) -> None:
    run_folder, artifact = trained
    rows = pl.read_parquet(features / "prepared" / "test" / "*.parquet")

    found = Scorer(artifact, outputs=[*OUTPUTS, "logit_click"]).predict(rows)

    assert Scorer(artifact).predict(rows).columns == OUTPUTS
    for name, value in expected(run_folder, features).items():
        np.testing.assert_allclose(found[name].to_numpy(), value, rtol=1e-5, atol=1e-5)
    assert found["y_spend"].min() >= 0
    assert (found["p_click_and_conversion"] <= found["p_click"]).all()


def test_a_prediction_below_zero_is_zero_where_it_is_of_log1p() -> None:
    task = Task(name="a", label="a", kind="regression", transform="log1p", mean=-5.0, scale=2.0)
    plain = replace(task, transform="identity")
    z = np.array([0.0, 12.0, 1e9])
    spec = FeatureSpec(
        dataset="toy", columns=(), tables=(), features=(), tasks=(task,), train_rows=1
    )

    found = amounts(spec, {"a": z})["a"].tolist()
    assert found == pytest.approx([0.0, math.e - 1, math.exp(80)], rel=1e-12)
    assert amounts(replace(spec, tasks=(plain,)), {"a": z})["a"].tolist() == [-5.0, 1.0, 5e8 - 5]


def test_training_watches_the_loss_of_every_task(
    trained: tuple[Path, Path], features: Path
) -> None:
    rows = [
        row
        for row in pl.read_csv(trained[0] / "metrics.csv").iter_rows(named=True)
        if row["valid/loss"] is not None
    ]
    row = min(rows, key=lambda row: row["valid/loss"])  # that of best.ckpt
    each = [row[f"valid/loss/{task}"] for task in ("click", "conversion", "watch", "spend")]
    assert row["valid/loss"] == pytest.approx(np.mean(each), rel=1e-5)
    assert row["valid/loss/click"] == row["valid/log_loss/click"]
    both = (row["valid/log_loss/click"], row["valid/log_loss/conversion"])
    assert row["valid/log_loss"] == pytest.approx(np.mean(both), rel=1e-5)

    model, spec = load_model(trained[0])
    logits, labels, _ = predict_split(model, Split(features, "valid", spec), batch_rows=64)
    error = logits["watch"] - (labels["watch"] - 20.0) * 0.2
    assert row["valid/loss/watch"] == pytest.approx(np.mean(error**2), rel=1e-5)
    p = 1 / (1 + np.exp(-logits["click"] - math.log(RATE)))
    y = labels["click"]
    log_loss = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    assert row["valid/log_loss/click"] == pytest.approx(log_loss, rel=1e-5)


def test_an_evaluation_measures_amounts_in_their_space(
    trained: tuple[Path, Path], features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((trained[0] / "evaluation.json").read_text())
    tasks = result["tasks"]
    clicks = int(np.load(features / "tensors" / "test" / "labels.npy")[:, 0].sum())
    found = expected(trained[0], features)
    watched = np.load(features / "tensors" / "test" / "labels.npy")[:, 2]

    assert list(tasks) == ["click", "conversion", "click_and_conversion", "watch", "spend"]
    assert (tasks["spend"]["space"], tasks["spend"]["rows"]) == ("click", clicks)
    assert tasks["watch"]["rmse"] == pytest.approx(
        np.sqrt(np.mean((found["y_watch"] - watched) ** 2))
    )
    assert tasks["click"]["calibration"] == pytest.approx(found["p_click"].mean() / (clicks / 200))
    lines = evaluate.table(result).splitlines()
    assert lines[0].split()[2:4] == ["rows", "positives"]
    assert lines[4].split()[:2] == ["rows", "mean"]
    assert lines[6].split()[:2] == ["spend", str(clicks)]


def test_the_artifact_says_what_its_answers_are(trained: tuple[Path, Path]) -> None:
    artifact = trained[1]
    manifest = Manifest.verify(artifact)
    assert list(manifest.outputs) == OUTPUTS
    assert manifest.logits == ("logit_click", "logit_conversion")
    assert manifest.data["keep_rates"] == {"click": RATE}
    card = (artifact / "MODEL_CARD.md").read_text()
    assert "ln(0.2) = -1.6094" in card
    for name in OUTPUTS:
        assert f"| `{name}` |" in card
        assert f'name: "{name}"' in (artifact / "triton" / "config.pbtxt").read_text()
    response = json.loads((artifact / "sample" / "response.json").read_text())
    answers = {tensor["name"]: tensor_from_json(tensor) for tensor in response["outputs"]}
    assert list(answers) == OUTPUTS
    again = Scorer(artifact).predict(pl.read_parquet(artifact / "sample" / "input.parquet"))
    np.testing.assert_allclose(again["y_watch"].to_numpy(), answers["y_watch"], rtol=1e-6)


def test_a_job_writes_the_amounts(
    trained: tuple[Path, Path], features: Path, tmp_path: Path
) -> None:
    prepared = features / "prepared" / "test"
    run(score, f"artifact={trained[1]}", f"input={prepared}", f"output={tmp_path / 'out'}")

    scored = pl.read_parquet(tmp_path / "out" / "parts" / "*.parquet")
    assert scored.columns == ["row_id", *OUTPUTS]
    wanted = Scorer(trained[1]).predict(pl.read_parquet(prepared / "*.parquet"))
    assert scored.select(OUTPUTS).equals(wanted)


def test_tasks_may_all_be_regressions(features: Path, tmp_path: Path) -> None:
    folder = tmp_path / "only"
    shutil.copytree(features, folder)
    spec = FeatureSpec.load(folder / "feature_spec.json")
    keep = [i for i, task in enumerate(spec.tasks) if task.kind == "regression"]
    tasks = tuple(replace(spec.tasks[i], space="all") for i in keep)
    replace(spec, tasks=tasks).save(folder / "feature_spec.json")
    for path in [*folder.glob("tensors/*/labels.npy"), *folder.glob("tensors/*/known.npy")]:
        np.save(path, np.load(path)[:, keep])
    request = [f"features={folder}", f"output={tmp_path / 'run'}", *SMALL]

    with pytest.raises(SystemExit) as stop:
        run(train, *request, "monitor=valid/log_loss")
    assert stop.value.code == 2
    run(train, *request, "monitor=valid/r2/spend", "mode=max")

    run(to_onnx, f"run={tmp_path / 'run'}", f"output={tmp_path / 'artifact'}")
    assert Manifest.load(tmp_path / "artifact").outputs == ("y_watch", "y_spend")
    card = (tmp_path / "artifact" / "MODEL_CARD.md").read_text()
    assert "pipeline_tag: tabular-regression" in card
