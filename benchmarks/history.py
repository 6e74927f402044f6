"""How much a user's history is worth: the same simulated rows with and without it.

    python benchmarks/history.py [--rows 1000000] [--seeds 1 2 3] [--models mmoe ple]
                                 [--jobs 1] [--train trainer=gpu] [--work DIR]

Prints the table of `benchmarks/history.md`. A model without the history has neither the list of
items clicked nor that of their categories; all else is equal, the training seeds too, so that the
difference is paired by seed. The last two lines are the simulation's own probabilities: as they
are, and without what a user's memory adds to the logit of a click.
"""

import argparse
import math
import os
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from line import markdown, train_and_evaluate

from pipelines.build import build
from recsys_moe.metrics import auc
from recsys_moe.paths import CONF_DIR

TASKS = ("click", "conversion", "click_and_conversion")
METRICS = [(task, metric) for metric in ("auc", "regret") for task in TASKS]
HEADER = ("model", *(f"{metric}, {task}".replace("auc", "AUC") for task, metric in METRICS))
KINDS = ("without", "with")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--models", nargs="+", default=["mmoe", "ple"])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--train", nargs="*", default=[], help="more of recsys-moe-train's words")
    parser.add_argument("--work", type=Path, default=Path("work/benchmarks/history"))
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.jobs)))
    features = {kind: options.work.absolute() / kind for kind in KINDS}
    for kind, folder in features.items():
        value = dataset(options.rows, history=kind == "with")
        with redirect_stdout(sys.stderr):
            build(value, folder=CONF_DIR / "dataset", output=folder)

    with ThreadPoolExecutor(options.jobs) as pool:
        futures = {
            (model, kind): [
                pool.submit(_run, folder, model, seed, options.train) for seed in options.seeds
            ]
            for model in options.models
            for kind, folder in features.items()
        }
        runs = {case: [future.result() for future in group] for case, group in futures.items()}

    print(f"Funnel, {options.rows:,} impressions, test split, seeds {options.seeds}; mean, and")
    print("standard error of the difference.\n")
    lines: list[Sequence[str]] = []
    for model in options.models:
        without, with_history = runs[model, "without"], runs[model, "with"]
        lines += [
            [f"{model} without", *(_mean(_all(without, *of)) for of in METRICS)],
            [f"{model} with", *(_mean(_all(with_history, *of)) for of in METRICS)],
            ["difference", *(_paired(without, with_history, *of) for of in METRICS)],
        ]
    print(markdown(HEADER, [*lines, *best_possible(features["with"])]))


def dataset(rows: int, *, history: bool) -> dict[str, Any]:
    """Return the values of the funnel's dataset file, on request without what reads a history."""
    value: dict[str, Any] = yaml.safe_load((CONF_DIR / "dataset" / "funnel.yaml").read_text())
    value["rows"] = rows
    if history:
        return value
    lists = {
        f"{role['name']}_{column}" for role in value.pop("histories") for column in role["columns"]
    }
    value["features"] = [each for each in value["features"] if not lists & set(_columns(each))]
    return value


def _columns(feature: dict[str, Any]) -> list[str]:
    return feature.get("columns") or [feature["column"]]


def best_possible(features: Path) -> list[list[str]]:
    """Return the lines of the truth with and without the users' memory; regret is of models."""
    truth = pl.read_parquet(features / "truth" / "test.parquet")
    labels = pl.read_parquet(features / "prepared" / "test" / "*.parquet")
    click, converted = (labels[task].fill_null(0).to_numpy() for task in TASKS[:2])
    clicked = click == 1
    p_conversion = truth["p_conversion"].to_numpy()
    lines = []
    for name, column in (
        ("truth without memory", "p_click_without_memory"),
        ("truth", "p_click"),
    ):
        p_click = truth[column].to_numpy()
        ranked = (
            auc(p_click, click),
            auc(p_conversion[clicked], converted[clicked]),
            auc(p_click * p_conversion, click * converted),
        )
        lines.append([name, *(f"{value:.5f}" for value in ranked), *["-"] * len(TASKS)])
    return lines


def _run(features: Path, model: str, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    run = features.parent / f"{features.name}-{model}-{seed}"
    return train_and_evaluate(features, run, f"model={model}", f"seed={seed}", *overrides)


def _all(runs: list[dict[str, Any]], task: str, metric: str) -> list[float]:
    return [run["tasks"][task][metric] for run in runs]


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.5f}"


def _paired(
    without: list[dict[str, Any]], with_history: list[dict[str, Any]], task: str, metric: str
) -> str:
    """Write the mean difference by seed and, of several seeds, its standard error."""
    pairs = zip(_all(with_history, task, metric), _all(without, task, metric), strict=True)
    differences = [ours - theirs for ours, theirs in pairs]
    mean = f"{statistics.mean(differences):+.5f}"
    if len(differences) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(differences) / math.sqrt(len(differences)):.5f}"


if __name__ == "__main__":
    main()
