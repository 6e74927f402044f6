"""A mixture of experts beside ensembles of independent models of the same size, on both data sets.

    python benchmarks/ensembles.py [--seeds 1 2 3] [--members 4] [--rows 300000] [--work DIR]

Prints the tables of `benchmarks/ensembles.md`. A member is a `shared_bottom` of its own, embeddings
included, trained with a seed of its own; the ensemble's probability is the mean of theirs. Members
are as wide as makes the networks of all together (tables left out) as large as the mixture's
network, or as the part of it that one row uses.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from line import command, markdown, mean_sd

from recsys_moe.checkpoint import load_model
from recsys_moe.datamodule import Split
from recsys_moe.moe.accounts import Account, account
from recsys_moe.paths import CONF_DIR
from recsys_moe.predict import predict_split
from recsys_moe.predictions import evaluate_outputs
from recsys_moe.spec import FeatureSpec

MIXTURES = {
    "mmoe, dense gates": ["model=mmoe"],
    "mmoe, top 2 of 8": ["model=mmoe", "router=top_k"],
}
BINS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--rows", type=int, default=300_000, help="impressions of funnel")
    parser.add_argument("--datasets", nargs="+", default=["census_income", "funnel"])
    parser.add_argument("--work", type=Path, default=Path("work/benchmarks/ensembles"))
    options = parser.parse_args()
    for dataset in options.datasets:
        more = [f"dataset.rows={options.rows}"] if dataset == "funnel" else []
        features = options.work / dataset / "features"
        command("features", f"dataset={dataset}", *more, f"output={features}")
        spec = FeatureSpec.load(features / "feature_spec.json")
        rows = []
        for name, choice in MIXTURES.items():
            rows.append(_row(name, spec, features, choice, 1, options))
        sparse = _account(spec, MIXTURES["mmoe, top 2 of 8"])
        for name, budget in (
            ("equal parameters", sparse.network_parameters),
            ("equal active parameters", sparse.active_network_parameters),
        ):
            choice = _member(spec, budget / options.members)
            rows.append(
                _row(
                    f"{options.members} models, {name}",
                    spec,
                    features,
                    choice,
                    options.members,
                    options,
                )
            )
            rows.append(_row(f"1 of them, {name}", spec, features, choice, 1, options))
        outputs = [name for name, _ in spec.outputs()]
        scores = [f"{name} {what}" for name in outputs for what in ("AUC", "log loss", "ECE")]
        costs = ["network", "active", "FLOPs/row"]
        print(f"\n{dataset}, test split, mean ± standard deviation over seeds {options.seeds}:\n")
        print(markdown(["model", *scores, *costs], rows))


def _row(
    name: str,
    spec: FeatureSpec,
    features: Path,
    choice: Sequence[str],
    members: int,
    options: argparse.Namespace,
) -> list[str]:
    """Train, predict and measure one line of the table for every seed."""
    found = [_measured(features, choice, seed, members, options) for seed in options.seeds]
    cells = [name]
    for output, _ in spec.outputs():
        for metric in ("auc", "log_loss", "ece"):
            cells.append(mean_sd([each[output][metric] for each in found]))
    cost = _account(spec, choice)
    network, active = members * cost.network_parameters, members * cost.active_network_parameters
    return [*cells, f"{network:,}", f"{active:,}", f"{members * cost.flops_per_row:,}"]


def _measured(
    features: Path, choice: Sequence[str], seed: int, members: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the test metrics of one seed; of an ensemble, of the mean of its members."""
    probabilities: dict[str, Any] = {}
    for member in range(members):
        own = seed + 1000 * member
        tag = "-".join(part.split("=", 1)[1].strip("[]").replace(",", "_") for part in choice)
        run = options.work / features.parent.name / f"{tag}-{own}"
        command("train", f"features={features}", f"output={run}", *choice, f"seed={own}")
        model, spec = load_model(run)
        data = Split(features, "test", spec)
        logits, labels, known = predict_split(model, data, 8192)
        for task, logit in logits.items():
            probabilities[task] = probabilities.get(task, 0) + 1 / (1 + np.exp(-logit)) / members
    means = {task: np.log(p) - np.log1p(-p) for task, p in probabilities.items()}
    outputs = evaluate_outputs(spec, means, labels, known)
    for name, chain in spec.outputs():
        p = probabilities[chain[0]]
        y, counts = labels[chain[0]], known[chain[0]] > 0
        for task in chain[1:]:
            p, y, counts = p * probabilities[task], y * labels[task], counts
        if len(chain) == 1 and spec.task(name).space != "all":
            for parent in spec.chain(name)[:-1]:
                counts = counts & (labels[parent] == 1)
        outputs[name]["ece"] = _ece(p[counts], y[counts])
    return outputs


def _ece(p: np.ndarray, y: np.ndarray) -> float:
    """Return the mean gap of mean prediction and rate over 20 bins of as many rows each."""
    parts = zip(*(np.array_split(each[np.argsort(p)], BINS) for each in (p, y)), strict=True)
    return float(sum(abs(a.mean() - b.mean()) * len(a) for a, b in parts) / len(p))


def _member(spec: FeatureSpec, budget: float) -> list[str]:
    """Return the choices of a `shared_bottom` whose network is nearest to a number of weights."""
    sizes = range(4, 1025, 2)
    choices = [["model=shared_bottom", f"model.widths=[{w},{max(2, w // 2)}]"] for w in sizes]
    return min(choices, key=lambda c: abs(_account(spec, c).network_parameters - budget))


def _account(spec: FeatureSpec, choice: Sequence[str]) -> Account:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        cfg = compose("train", overrides=["features=none", "output=none", *choice])
    with torch.device("meta"):
        return account(instantiate(cfg.model, _convert_="all")(spec))


if __name__ == "__main__":
    main()
