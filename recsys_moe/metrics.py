"""Predictions and labels -> how well a task is ranked, how honest it is, how far off."""

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

Floats = NDArray[np.float64]
SMALLEST = 1e-12


def auc(p: Floats, y: Floats) -> float | None:
    """Return the share of (positive, negative) pairs ranked right, ties half; None: one class."""
    return float(roc_auc_score(y, p)) if 0 < y.sum() < len(y) else None


def log_loss(p: Floats, y: Floats) -> float:
    """Return the mean of -log P(label), in nats; `y` may also be a true probability."""
    p = np.clip(p, SMALLEST, 1 - SMALLEST)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log1p(-p)))


def normalized_entropy(p: Floats, y: Floats) -> float | None:
    """Return log loss over that of always predicting the base rate (He et al., ADKDD 2014)."""
    base = log_loss(np.full_like(y, y.mean()), y)
    return log_loss(p, y) / base if 0 < y.mean() < 1 else None


def calibration(p: Floats, y: Floats) -> float | None:
    """Return mean prediction over mean label; 1 is neither too high nor too low."""
    return float(p.mean() / y.mean()) if y.sum() > 0 else None


def rmse(predicted: Floats, y: Floats) -> float:
    """Return the root of the mean squared error, in the unit of the label."""
    return float(np.sqrt(np.mean(np.square(predicted - y))))


def mae(predicted: Floats, y: Floats) -> float:
    """Return the mean absolute error, in the unit of the label."""
    return float(np.mean(np.abs(predicted - y)))


def r2(predicted: Floats, y: Floats) -> float | None:
    """Return the share of the label's variance that is explained; None: it has none."""
    if y.min() == y.max():
        return None
    return 1 - float(np.mean(np.square(predicted - y)) / np.var(y))


def gauc(p: Floats, y: Floats, users: NDArray[np.int64]) -> float | None:
    """Return AUC per user, averaged by impressions (Zhu et al., KDD 2017, eq. 7).

    Users without a positive or without a negative, and rows without a user (-1), do not count.
    """
    keep = users >= 0
    p, y, users = p[keep], y[keep], users[keep]
    order = np.lexsort((p, users))
    p, y, users = p[order], y[order], users[order]
    if not len(p):
        return None
    new_user = np.r_[True, users[1:] != users[:-1]]
    new_value = new_user | np.r_[True, p[1:] != p[:-1]]
    user = np.cumsum(new_user) - 1
    tie = np.cumsum(new_value) - 1
    first = np.flatnonzero(new_value)
    size = np.diff(np.r_[first, len(p)])
    start_of_user = np.flatnonzero(new_user)
    rank = (first + (size - 1) / 2)[tie] - start_of_user[user]  # mid-rank within the user, from 0
    rows = np.diff(np.r_[start_of_user, len(p)])
    positives = np.bincount(user, y)
    negatives = rows - positives
    rank_sum = np.bincount(user, rank * y)
    both = (positives > 0) & (negatives > 0)
    if not both.any():
        return None
    positives, negatives, rank_sum, rows = (
        positives[both],
        negatives[both],
        rank_sum[both],
        rows[both],
    )
    per_user = (rank_sum - positives * (positives - 1) / 2) / (positives * negatives)
    return float(np.average(per_user, weights=rows))
