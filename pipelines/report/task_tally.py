"""Counts of labels, each task in its own space, altogether and by day.

Shapes: B rows of a batch, T tasks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys_moe.spec import FeatureSpec, TaskKind

_DAY = 86_400_000_000  # microseconds
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class TaskCounts:
    """Labels of one task: how many are known, and how large they are."""

    kind: TaskKind
    rows: int = 0
    known: int = 0
    positives: int = 0
    total: float = 0.0
    squares: float = 0.0
    weight: float = 0.0
    weighted: float = 0.0
    days: dict[int, tuple[int, float]] = field(default_factory=dict)
    """By day since 1970, how many labels are known and their sum."""

    def add(
        self,
        labels_B: npt.NDArray[np.float64],
        weights_B: npt.NDArray[np.float64],
        days_B: npt.NDArray[np.int64] | None,
    ) -> None:
        """Take in the rows of the task's space; a weight of 0 is an unknown label."""
        self.rows += len(labels_B)
        known_B = weights_B > 0
        y, w = labels_B[known_B], weights_B[known_B]
        self.known += len(y)
        self.positives += int((y == 1).sum())
        self.total += float(y.sum())
        self.squares += float(np.square(y).sum())
        self.weight += float(w.sum())
        self.weighted += float((w * y).sum())
        if days_B is None:
            return
        days, place = np.unique(days_B[known_B], return_inverse=True)
        counts, totals = np.bincount(place), np.bincount(place, weights=y)
        for day, count, total in zip(days.tolist(), counts, totals, strict=True):
            known, sum_ = self.days.get(day, (0, 0.0))
            self.days[day] = known + int(count), sum_ + float(total)

    def report(self, keep_rate: float = 1.0) -> dict[str, Any]:
        """Return counts and rates as plain values.

        A binary task has the share of positives; a regression mean and standard deviation. Where
        some labels count more than others, the weighted mean stands beside it, and where only the
        share `keep_rate` of the negatives was kept, the rate among all.
        """
        found: dict[str, Any] = {"rows": self.rows, "known": self.known}
        mean = self.total / self.known if self.known else None
        if self.kind == "binary":
            found |= {"positives": self.positives, "rate": _rounded(mean)}
            if mean is not None and keep_rate != 1:
                found["unsampled_rate"] = _rounded(mean / (mean + (1 - mean) / keep_rate))
        else:
            spread = None
            if mean is not None:
                spread = math.sqrt(max(self.squares / self.known - mean * mean, 0.0))
            found |= {"mean": _rounded(mean), "std": _rounded(spread)}
        if self.weight != self.known:
            name = "weighted_rate" if self.kind == "binary" else "weighted_mean"
            found[name] = _rounded(self.weighted / self.weight)
        if self.days:
            word = "rate" if self.kind == "binary" else "mean"
            found["days"] = [
                {"day": day_name(day), "known": known, word: _rounded(total / known)}
                for day, (known, total) in sorted(self.days.items())
            ]
        return found


def add_labels(
    spec: FeatureSpec,
    tasks: Mapping[str, TaskCounts],
    labels_BT: npt.NDArray[Any],
    known_BT: npt.NDArray[Any],
    times: pl.Series | None,
) -> None:
    """Count the labels of more rows in each task's own space."""
    labels_BT, known_BT = labels_BT.astype(np.float64), known_BT.astype(np.float64)
    days_B = None if times is None else times.fill_null(0).to_numpy() // _DAY
    places = {name: place for place, name in enumerate(spec.task_names)}
    for name, counts in tasks.items():
        inside_B = np.ones(len(labels_BT), bool)
        for parent in spec.chain(name)[:-1]:
            inside_B &= labels_BT[:, places[parent]] == 1
        place = places[name]
        days = None if days_B is None else days_B[inside_B]
        counts.add(labels_BT[inside_B, place], known_BT[inside_B, place], days)


def day_name(day: int) -> str:
    """Return a day since 1970 as text.

    >>> day_name(20000)
    '2024-10-04'
    """
    return (_EPOCH + timedelta(days=day)).date().isoformat()


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 9)
