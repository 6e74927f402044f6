"""Logits and labels of a split -> metrics of every output, each in its own space."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_moe import metrics
from recsys_moe.spec import FeatureSpec

Columns = Mapping[str, NDArray[np.float64]]


def probabilities(spec: FeatureSpec, logits: Columns) -> dict[str, NDArray[np.float64]]:
    """Return every output's probability by its name without `p_`, from the tasks' logits."""
    p = {task: 1 / (1 + np.exp(-np.clip(logits[task], -700, 700))) for task in spec.task_names}
    return {name: np.prod([p[task] for task in chain], axis=0) for name, chain in spec.outputs()}


def outcomes(spec: FeatureSpec, labels: Columns, known: Columns) -> dict[str, dict[str, Any]]:
    """Return for every output its space, the rows that count and their labels.

    A task counts where it is known and every task above it is positive; a product over all rows
    counts where it is known: all factors are, or one of them is a known negative.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, tasks in spec.outputs():
        product = len(tasks) > 1
        reached = np.ones(len(labels[tasks[0]]), bool)
        failed = np.zeros_like(reached)
        chain = tasks if product else spec.chain(name)
        for task in chain:
            last = reached & (known[task] > 0)
            failed |= last & (labels[task] == 0)
            reached = last & (labels[task] > 0)
        rows = (reached | failed) if product else last
        space = "all" if product else spec.task(name).space
        found[name] = {"space": space, "rows": rows, "labels": reached[rows].astype(np.float64)}
    return found


def evaluate_outputs(
    spec: FeatureSpec,
    logits: Columns,
    labels: Columns,
    known: Columns,
    users: NDArray[np.int64] | None = None,
    truth: Columns | None = None,
) -> dict[str, dict[str, Any]]:
    """Return per output its space, rows, positives and metrics; with a known truth, the regret."""
    p_all = probabilities(spec, logits)
    result = {}
    for name, outcome in outcomes(spec, labels, known).items():
        rows, y = outcome["rows"], outcome["labels"]
        p = p_all[name][rows]
        result[name] = {
            "space": outcome["space"],
            "rows": len(y),
            "positives": int(y.sum()),
            "auc": metrics.auc(p, y),
            "log_loss": metrics.log_loss(p, y) if len(y) else None,
            "ne": metrics.normalized_entropy(p, y) if len(y) else None,
            "calibration": metrics.calibration(p, y),
            "gauc": None if users is None else metrics.gauc(p, y, users[rows]),
        }
        if truth is not None:
            result[name] |= _against(truth[name], p_all[name], rows, y)
    return result


def _against(
    true_p: NDArray[np.float64],
    p: NDArray[np.float64],
    rows: NDArray[np.bool_],
    y: NDArray[np.float64],
) -> dict[str, float | None]:
    """Return the best possible AUC, and how much expected log loss is lost to the true probability.

    `regret` is over the rows of the output's own space, `regret_all_rows` over every row: what a
    conversion model says of impressions nobody clicked.
    """

    def regret(p: NDArray[np.float64], true_p: NDArray[np.float64]) -> float:
        return metrics.log_loss(p, true_p) - metrics.log_loss(true_p, true_p)

    return {
        "best_auc": metrics.auc(true_p[rows], y),
        "regret": regret(p[rows], true_p[rows]),
        "regret_all_rows": regret(p, true_p),
    }
