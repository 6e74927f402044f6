r"""How far a split lies from train, feature by feature: the population stability index.

.. math:: \mathrm{PSI} = \sum_b (q_b - p_b) \ln \frac{q_b}{p_b}

over bins b with shares p of train and q of the other split, both at least 1e-4. Numbers have ten
bins of equal share of train, and one for missing; codes the twenty most frequent of train, one for
the rest, one for missing (null elements and empty lists) and one for values outside the
vocabulary. Two samples of n and m rows of one distribution differ by about (bins - 1)(1/n + 1/m),
so that small splits are not judged.

Shapes: N values, E edges, D components of a vector, V codes of a table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.report.tally import CodeCounts, Tally
from recsys_moe.errors import DataError, RequestError
from recsys_moe.spec import FIRST_OOV, MISSING_CODE, FeatureSpec

NUM_BINS, NUM_CODES = 10, 20
JUDGED_FROM_ROWS = 10_000
WARN, ALARM = 0.1, 0.25
_LEAST_SHARE = 1e-4

Counts = npt.NDArray[np.int64]


def psi(expected: Counts, actual: Counts) -> float | None:
    """Return the index of two counts over the same bins; None where one of them is empty.

    >>> psi(np.array([50, 50]), np.array([50, 50]))
    0.0
    >>> round(psi(np.array([50, 50]), np.array([75, 25])), 4)  # 0.25 ln(0.75 / 0.25)
    0.2747
    """
    if not expected.sum() or not actual.sum():
        return None
    return float(psi_parts(expected, actual).sum())


def psi_parts(expected: Counts, actual: Counts) -> npt.NDArray[np.float64]:
    """Return what each bin adds to the index; neither side may be empty."""
    p = np.maximum(expected / expected.sum(), _LEAST_SHARE)
    q = np.maximum(actual / actual.sum(), _LEAST_SHARE)
    parts: npt.NDArray[np.float64] = (q - p) * np.log(q / p)
    return parts


def quantile_edges(values_N: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the edges of ten right-closed bins of equal share, (E,).

    A value that fills more than one bin gets a bin of its own, so that a constant column has three:
    below it, it, above it.
    """
    if not len(values_N):
        return np.zeros(0, np.float32)
    wanted = np.arange(1, NUM_BINS) / NUM_BINS
    edges, times = np.unique(
        np.quantile(values_N, wanted, method="inverted_cdf"), return_counts=True
    )
    below = np.nextafter(edges[times > 1], np.float32(-np.inf), dtype=np.float32)
    return np.unique(np.concatenate([edges, below]))


@dataclass(frozen=True, slots=True)
class DriftBins:
    """The bins of each feature with codes, fitted on train: its most frequent codes."""

    spec: FeatureSpec
    top_codes: Mapping[str, tuple[int, ...]]

    @classmethod
    def fit(cls, spec: FeatureSpec, train: Tally) -> "DriftBins":
        """Choose the bins by what train holds."""
        return cls(spec, {name: top_codes(counts) for name, counts in train.codes.items()})

    def counts(self, tally: Tally) -> dict[str, list[Counts]]:
        """Return the counts of a split by feature: of a vector one array a component, else one."""
        binned = {name: list(counts.binned) for name, counts in tally.numbers.items()}
        for feature in self.spec.code_features:
            counts, top = tally.codes[feature.name], list(self.top_codes[feature.name])
            table = self.spec.table(feature.table)
            hashed = table.vocabulary is None
            unseen = 0 if hashed else int(counts.histogram[FIRST_OOV : table.first_value].sum())
            rest = counts.histogram[FIRST_OOV:].sum() - counts.histogram[top].sum() - unseen
            missing = counts.histogram[MISSING_CODE] + counts.empty
            ends = np.array([rest, missing, unseen], np.int64)
            binned[feature.name] = [np.concatenate([counts.histogram[top], ends])]
        return {feature.name: binned[feature.name] for feature in self.spec.features}


def top_codes(counts: CodeCounts) -> tuple[int, ...]:
    """Return the twenty most frequent codes of listed or hashed values, ties by code."""
    codes_V = counts.histogram.copy()
    codes_V[: counts.first_value] = 0
    most = min(NUM_CODES, int(np.count_nonzero(codes_V)))
    if not most:
        return ()
    least = np.partition(codes_V, -most)[-most]
    candidates = np.flatnonzero(codes_V >= max(int(least), 1))
    order = np.argsort(-codes_V[candidates], kind="stable")
    return tuple(int(code) for code in candidates[order][:most])


def drift_of(train: list[Counts], other: list[Counts]) -> float | None:
    """Return the largest index over the components of a feature, to six decimals."""
    indices = [psi(p, q) for p, q in zip(train, other, strict=True)]
    known = [index for index in indices if index is not None]
    return round(max(known), 6) if known else None


def check_drift(report: Mapping[str, Any], max_drift: float | None) -> None:
    """Refuse data that lies too far from train.

    Args:
        report: What `write_report` returned.
        max_drift: The largest index that is allowed; None allows any. A split of less than
            10,000 rows, or one beside so small a train split, is not judged.

    Raises:
        RequestError: `max_drift` is not a number above 0.
        DataError: A feature of valid or test exceeds it.
    """
    if max_drift is None:
        return
    number = isinstance(max_drift, (int, float)) and not isinstance(max_drift, bool)
    if not number or not max_drift > 0:
        raise RequestError("max_drift", wanted="null or a number above 0", got=repr(max_drift))
    drift = report["drift"]
    worst = [
        (value, split, name)
        for split in drift["judged"]
        for name, value in drift["psi"][split].items()
        if value is not None and value > max_drift
    ]
    if worst:
        value, split, name = max(worst)
        others = f", {len(worst) - 1} more above it" if len(worst) > 1 else ""
        raise DataError(
            f"feature {name!r}, drift of {split}: wanted a PSI of at most {max_drift:g}, "
            f"got {value:.3f}{others}. See report.html."
        )
