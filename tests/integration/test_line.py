"""The whole line on both data sets: raw columns to scored parquet, awkward rows within parity."""

import json
import sys
from pathlib import Path

import polars as pl
import pytest

from export import score, to_onnx
from export.parity import awkward_frame, check_parity
from pipelines import build
from recsys_moe import evaluate, train
from recsys_moe.checkpoint import load_model

DATASETS = {
    "census_income": [],
    "funnel": ["dataset.rows=20000", "dataset.features.0.min_frequency=2"],
}


def run(module: object, *arguments: str) -> None:
    sys.argv = ["command", *arguments]
    module.main()  # type: ignore[attr-defined]


@pytest.mark.parametrize("dataset", DATASETS)
def test_raw_columns_to_scored_parquet(dataset: str, tmp_path: Path) -> None:
    features, folder, artifact, output = (tmp_path / name for name in "frap")
    run(build, f"dataset={dataset}", *DATASETS[dataset], f"output={features}")
    run(train, f"features={features}", f"output={folder}", "max_epochs=1", "batch_size=8192")
    run(evaluate, f"run={folder}", f"features={features}")
    run(to_onnx, f"run={folder}", f"output={artifact}")
    prepared = features / "prepared" / "test"
    run(score, f"artifact={artifact}", f"input={prepared}", f"output={output}")

    model, spec = load_model(folder)
    rows = awkward_frame(spec, folder, pl.read_parquet(folder / "sample.parquet"), rows=10_000)
    parity = check_parity(artifact, model, spec, folder, rows, tolerance=1e-5)
    assert parity.rows > 10_000

    success = json.loads((output / "_SUCCESS.json").read_text())
    scored = pl.read_parquet([output / part["path"] for part in success["parts"]])
    names = [f"p_{name}" for name, _ in spec.outputs()]
    assert scored.columns == [*spec.keys, *names]
    assert scored[spec.keys[0]].to_list() == (
        pl.read_parquet(prepared / "*.parquet")[spec.keys[0]].to_list()
    )
    assert set(json.loads((folder / "evaluation.json").read_text())["tasks"]) == {
        name for name, _ in spec.outputs()
    }
    for name, chain in spec.outputs():
        if len(chain) > 1:
            assert (scored[f"p_{name}"] <= scored[f"p_{chain[0]}"]).all()


def test_the_truth_of_a_simulation_bounds_every_metric(tmp_path: Path) -> None:
    features, folder = tmp_path / "f", tmp_path / "r"
    run(build, "dataset=funnel", "dataset.rows=20000", f"output={features}")
    run(train, f"features={features}", f"output={folder}", "max_epochs=1")
    run(evaluate, f"run={folder}", f"features={features}")

    tasks = json.loads((folder / "evaluation.json").read_text())["tasks"]
    for result in tasks.values():
        assert result["auc"] < result["best_auc"]
        assert result["regret"] > 0
        assert result["regret_all_rows"] > 0
