"""Census-Income with boosted trees as experts beside networks, and each of them alone.

    python benchmarks/census_trees.py [--seeds 1 2 3] [--work work/benchmarks/census_trees]

Prints the table of `benchmarks/census_trees.md`. Trees are fitted on train and stopped on
validation, one ensemble a task; networks train with `model=mmoe` and `SETTINGS`, the same with
trees and without. Validation alone decides which round and which checkpoint is measured.
"""

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightgbm import LGBMClassifier, early_stopping
from line import command, markdown, mean_sd, train_and_evaluate
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score

from recsys_moe.checkpoint import load_model
from recsys_moe.datamodule import Split
from recsys_moe.frozen.columns import raw_columns, read_rows
from recsys_moe.frozen.expert_file import read_expert
from recsys_moe.frozen.freeze import freeze
from recsys_moe.frozen.graph import run
from recsys_moe.spec import FeatureSpec

TASKS = ("income", "never_married")
SETTINGS = ("max_epochs=12", "patience=0", "model.dropout=0.3", "model.embedding_dropout=0.2")
TREES: dict[str, dict[str, Any]] = {
    "as LightGBM comes": {"num_leaves": 31},
    "small trees": {
        "num_leaves": 7,
        "min_child_samples": 200,
        "reg_lambda": 20,
        "colsample_bytree": 0.3,
        "subsample": 0.7,
        "subsample_freq": 1,
    },
}
SMALL = "small trees"
Result = dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--work", type=Path, default=Path("work/benchmarks/census_trees"))
    options = parser.parse_args()
    features: Path = options.work / "features"
    command("features", "dataset=census_income", f"output={features}")
    rows = [
        ["gradient boosting, as quoted", "0.9546", "0.9949", "", ""],
        *(_row(f"LightGBM alone, {kind}", options, _alone(features, kind)) for kind in TREES),
        _row("networks alone", options, lambda seed: _networks(features, options.work, seed)),
        _row("trees as experts", options, lambda seed: _both(features, options.work, seed)),
        _row("mean of two", options, lambda seed: _averaged(features, options.work, seed)),
    ]
    columns = [f"{task} {what}" for what in ("AUC", "log loss") for task in TASKS]
    print(f"Test file, mean ± standard deviation over seeds {options.seeds}:\n")
    print(markdown(["", *columns], rows))


def _row(name: str, options: argparse.Namespace, measured: Callable[[int], Result]) -> list[str]:
    runs = [measured(seed) for seed in options.seeds]
    metrics = [(what, task) for what in ("auc", "log_loss") for task in TASKS]
    return [name, *(mean_sd([run[task][what] for run in runs]) for what, task in metrics)]


def _alone(features: Path, kind: str) -> Callable[[int], Result]:
    def measured(seed: int) -> Result:
        found = {}
        for task in TASKS:
            model = _fitted(features, task, kind, seed)
            rows, labels = read_rows(features, "test", _names(features), task)
            found[task] = _measured(labels, model.predict_proba(rows)[:, 1])
        return found

    return measured


def _networks(features: Path, work: Path, seed: int) -> Result:
    folder = work / f"networks-{seed}"
    return _result(train_and_evaluate(features, folder, "model=mmoe", f"seed={seed}", *SETTINGS))


def _both(features: Path, work: Path, seed: int) -> Result:
    spec, files = FeatureSpec.load(features / "feature_spec.json"), []
    for task in TASKS:
        model = _fitted(features, task, SMALL, seed)
        rows, _ = read_rows(features, "train", _names(features), task)
        path = work / f"trees-{seed}" / f"{task}.onnx"
        freeze(model, spec, _names(features), path, rows=rows, name=f"lightgbm_{task}")
        files.append(str(path))
    experts = f"model.frozen_experts=[{','.join(files)}]"
    folder = work / f"both-{seed}"
    return _result(
        train_and_evaluate(features, folder, "model=mmoe", f"seed={seed}", experts, *SETTINGS)
    )


def _averaged(features: Path, work: Path, seed: int) -> Result:
    """Measure the mean log-odds of networks and trees that never met."""
    model, spec = load_model(work / f"networks-{seed}")
    with torch.no_grad():
        batches = Split(features, "test", spec).batches(8192)
        parts = [model(batch.codes, batch.numbers) for batch in batches]
    found = {}
    for task in TASKS:
        rows, labels = read_rows(features, "test", _names(features), task)
        networks = torch.cat([part[task] for part in parts]).double().numpy()
        trees = run(read_expert(work / f"trees-{seed}" / f"{task}.onnx").content, rows, task)[:, 0]
        found[task] = _measured(labels, expit((networks + trees) / 2))
    return found


def _measured(labels: NDArray[np.float32], chance: NDArray[np.float64]) -> dict[str, float]:
    auc, loss = roc_auc_score(labels, chance), log_loss(labels, chance)
    return {"auc": float(auc), "log_loss": float(loss)}


@cache
def _fitted(features: Path, task: str, kind: str, seed: int) -> LGBMClassifier:
    """Return the trees of a task."""
    names = _names(features)
    rows, labels = read_rows(features, "train", names, task)
    model = LGBMClassifier(
        n_estimators=4000, learning_rate=0.05, n_jobs=1, verbose=-1, seed=seed, **TREES[kind]
    )
    valid = read_rows(features, "valid", names, task)
    stop = early_stopping(50, verbose=False)
    return model.fit(rows, labels, eval_set=[valid], callbacks=[stop])


def _names(features: Path) -> list[str]:
    return list(raw_columns(FeatureSpec.load(features / "feature_spec.json")))


def _result(evaluation: dict[str, Any]) -> Result:
    found: Result = evaluation["tasks"]
    return found


if __name__ == "__main__":
    main()
