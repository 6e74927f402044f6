"""What the towers put out and labels of a split -> metrics of every output, in its own space."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_moe import metrics
from recsys_moe.spec import LARGEST_LOG, FeatureSpec, Task

Floats = NDArray[np.float64]
Columns = Mapping[str, Floats]


def probabilities(spec: FeatureSpec, logits: Columns) -> dict[str, Floats]:
    """Return every output's probability by its name without `p_`, from the towers' logits.

    A task whose negatives were thinned out for training gets ln(keep_rate) added to its logit: the
    odds among all rows are that much lower than among those kept.
    """
    shifted = {
        task.name: logits[task.name] + math.log(task.keep_rate)
        for task in spec.tasks
        if task.kind == "binary"
    }
    p = {name: 1 / (1 + np.exp(-np.clip(logit, -700, 700))) for name, logit in shifted.items()}
    return {name: np.prod([p[task] for task in chain], axis=0) for name, chain in spec.outputs()}


def amounts(spec: FeatureSpec, logits: Columns) -> dict[str, Floats]:
    """Return every regression's prediction by its name, in the unit of its label."""
    return {task.name: _amount(task, logits[task.name]) for task in spec.regressions}


def _amount(task: Task, z: Floats) -> Floats:
    value = z / task.scale + task.mean
    return np.expm1(np.clip(value, 0, LARGEST_LOG)) if task.transform == "log1p" else value


def outcomes(spec: FeatureSpec, labels: Columns, known: Columns) -> dict[str, dict[str, Any]]:
    """Return for every probability its space, the rows that count and their labels.

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
    """Return per output its space, its rows and its metrics, unweighted.

    A probability has positives, AUC, log loss, NE, calibration and GAUC; with a known truth, the
    regret. A regression has the means of labels and predictions, RMSE, MAE and R², and as `loss`
    the mean squared error of what its tower learns, in variances of the train labels.

    Args:
        spec: The feature spec.
        logits: What the towers put out, by task.
        labels: The labels, 0 where unknown, by task.
        known: Above 0 where the label is known, by task.
        users: The user of each row, -1 for none.
        truth: The true probabilities of simulated rows, by output.
    """
    p_all = probabilities(spec, logits)
    result: dict[str, dict[str, Any]] = {}
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
    predicted = amounts(spec, logits)
    for task in spec.regressions:
        rows = _rows_in_space(spec, task, labels, known)
        y, mine = labels[task.name][rows], predicted[task.name][rows]
        error = logits[task.name][rows] - _standardised(task, y)
        result[task.name] = {
            "space": task.space,
            "rows": len(y),
            "mean": float(y.mean()) if len(y) else None,
            "predicted_mean": float(mine.mean()) if len(y) else None,
            "rmse": metrics.rmse(mine, y) if len(y) else None,
            "mae": metrics.mae(mine, y) if len(y) else None,
            "r2": metrics.r2(mine, y) if len(y) else None,
            "loss": float(np.mean(np.square(error))) if len(y) else None,
        }
    return result


def monitored(spec: FeatureSpec) -> dict[str, tuple[str, ...]]:
    """Return each metric that training can watch, with the outputs it is measured for.

    `loss` is that of every task: log loss, or a regression's mean squared error in variances.
    """
    probable = tuple(name for name, _ in spec.outputs())
    amounts = tuple(task.name for task in spec.regressions)
    found = {"loss": spec.task_names, "auc": probable, "log_loss": probable}
    found["r2"] = amounts
    return {metric: outputs for metric, outputs in found.items() if outputs}


def _rows_in_space(
    spec: FeatureSpec, task: Task, labels: Columns, known: Columns
) -> NDArray[np.bool_]:
    rows = known[task.name] > 0
    for parent in spec.chain(task.name)[:-1]:
        rows = rows & (known[parent] > 0) & (labels[parent] > 0)
    return rows


def _standardised(task: Task, y: Floats) -> Floats:
    value = np.log1p(y) if task.transform == "log1p" else y
    return (value - task.mean) * task.scale


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
