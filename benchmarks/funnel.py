"""Simulated clicks and conversions with the defaults: every model, several seeds, known truth.

    python benchmarks/funnel.py [--rows 1000000] [--seeds 1 2 3] [--jobs 1] [--work DIR]

Prints the tables of `benchmarks/funnel.md`. Regret is the expected log loss under the true
probabilities minus that of the truth itself, in each output's own space.
"""

import argparse
import math
import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from line import MODELS, command, markdown, mean_sd, train_and_evaluate, validation_curve

OUTPUTS = ("click", "conversion", "click_and_conversion")
Runs = dict[tuple[str, ...], list[dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--train", nargs="*", default=[], help="more of recsys-moe-train's words")
    parser.add_argument("--work", type=Path, default=Path("work/benchmarks/funnel"))
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.jobs)))
    features = options.work / "features"
    command("features", "dataset=funnel", f"dataset.rows={options.rows}", f"output={features}")

    cases = [(model, "auto", "whole") for model in MODELS]
    cases += [("ple", "per_task", "whole"), *((model, "auto", "three") for model in MODELS)]
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = {
            case: [
                pool.submit(_run, features, options.work, case, seed, options.train)
                for seed in options.seeds
            ]
            for case in cases
        }
        runs: Runs = {
            case: [future.result() for future in group] for case, group in futures.items()
        }

    print(f"Funnel, {options.rows:,} impressions, test split, seeds {options.seeds}.\n")
    best = [f"{_all(runs, MODELS[0], output, 'best_auc')[0]:.5f}" for output in OUTPUTS]
    auc = [[m, *(mean_sd(_all(runs, m, o, "auc")) for o in OUTPUTS)] for m in MODELS]
    print("AUC:\n")
    print(markdown(["model", *OUTPUTS], [*auc, ["best possible", *best]]))
    print("\nRegret, and conversion regret minus that of single_task (mean ± standard error):\n")
    regret = [
        [m, *(mean_sd(_all(runs, m, o, "regret")) for o in OUTPUTS), _against_single(runs, m)]
        for m in MODELS
    ]
    print(markdown(["model", *OUTPUTS, "difference"], regret))
    print("\nple, conversion given click, by the loss it learns from:\n")
    losses = [
        [loss, *(mean_sd(_all(runs, "ple", "conversion", name, loss)) for name in names)]
        for names in [("auc", "regret", "regret_all_rows")]
        for loss in ("auto", "per_task")
    ]
    print(markdown(["loss", "AUC among clicks", "regret, clicks", "regret, all rows"], losses))
    print("\nThree epochs without early stopping, validation AUC after epochs 1, 2, 3 (mean over")
    print("the seeds; in brackets the largest fall below epoch 1 of any seed):\n")
    steady = [
        [m, *(_steady(runs[m, "auto", "three"], task) for task in OUTPUTS[:2])] for m in MODELS
    ]
    print(markdown(["model", *OUTPUTS[:2]], steady))


def _run(
    features: Path, work: Path, case: tuple[str, ...], seed: int, words: list[str]
) -> dict[str, Any]:
    model, loss, length = case
    run = work / f"{model}-{loss}-{length}-{seed}"
    overrides = [f"model={model}", f"loss={loss}", f"seed={seed}", *words]
    if length == "three":
        command(
            "train",
            f"features={features}",
            f"output={run}",
            *overrides,
            "max_epochs=3",
            "patience=0",
        )
        return {task: validation_curve(run, f"valid/auc/{task}") for task in OUTPUTS[:2]}
    return train_and_evaluate(features, run, *overrides)


def _all(runs: Runs, model: str, output: str, name: str, loss: str = "auto") -> list[float]:
    return [run["tasks"][output][name] for run in runs[model, loss, "whole"]]


def _against_single(runs: Runs, model: str) -> str:
    pairs = zip(
        _all(runs, model, "conversion", "regret"),
        _all(runs, "single_task", "conversion", "regret"),
        strict=True,
    )
    differences = [ours - theirs for ours, theirs in pairs]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{statistics.mean(differences):+.5f} ± {error:.5f}"


def _steady(curves: list[dict[str, list[float]]], task: str) -> str:
    means = [sum(epoch) / len(epoch) for epoch in zip(*(c[task] for c in curves), strict=True)]
    fall = max(curve[task][0] - min(curve[task][1:]) for curve in curves)
    return " ".join(f"{mean:.5f}" for mean in means) + f" ({max(0.0, fall):.5f})"


if __name__ == "__main__":
    main()
