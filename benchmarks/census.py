"""Census-Income with the defaults: every model, several seeds, the official test file.

    python benchmarks/census.py [--seeds 1 2 3] [--work work/benchmarks/census]

Prints the table of `benchmarks/census.md`. Validation alone decides which checkpoint is measured.
"""

import argparse
from pathlib import Path

from line import MODELS, command, markdown, mean_sd, train_and_evaluate, validation_curve

TASKS = ("income", "never_married")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--work", type=Path, default=Path("work/benchmarks/census"))
    options = parser.parse_args()
    features = options.work / "features"
    command("features", "dataset=census_income", f"output={features}")

    quality, steady = [], []
    for model in MODELS:
        runs = [
            train_and_evaluate(
                features, options.work / f"{model}-{seed}", f"model={model}", f"seed={seed}"
            )
            for seed in options.seeds
        ]
        cells = [mean_sd([run["tasks"][task]["auc"] for run in runs]) for task in TASKS]
        losses = [mean_sd([run["tasks"][task]["log_loss"] for run in runs]) for task in TASKS]
        quality.append([model, *cells, *losses, f"{runs[0]['parameters']:,}"])
        steady.append([model, *(_epochs(features, options, model, task) for task in TASKS)])

    header = ["model", *(f"{task} AUC" for task in TASKS), *(f"{task} log loss" for task in TASKS)]
    print(f"Test file, mean ± standard deviation over seeds {options.seeds}:\n")
    print(markdown([*header, "parameters"], quality))
    print("\nThree epochs without early stopping, validation AUC after epochs 1, 2, 3 (mean over")
    print("the seeds; last column: the largest fall below epoch 1 of any seed):\n")
    print(markdown(["model", *TASKS], steady))


def _epochs(features: Path, options: argparse.Namespace, model: str, task: str) -> str:
    curves = []
    for seed in options.seeds:
        run = options.work / f"three-epochs-{model}-{seed}"
        overrides = [f"model={model}", f"seed={seed}", "max_epochs=3", "patience=0"]
        command("train", f"features={features}", f"output={run}", *overrides)
        curves.append(validation_curve(run, f"valid/auc/{task}"))
    means = [sum(epoch) / len(epoch) for epoch in zip(*curves, strict=True)]
    fall = max(curve[0] - min(curve[1:]) for curve in curves)
    return " ".join(f"{mean:.5f}" for mean in means) + f" ({max(0.0, fall):.5f})"


if __name__ == "__main__":
    main()
