"""Drift against closed forms, plain Python, and what a build may be refused for."""

import math
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from pipelines.report.drift import drift_of, psi, quantile_edges, top_codes
from pipelines.report.report import check_drift
from pipelines.report.tally import CodeCounts, NumberCounts
from recsys_moe.errors import DataError, RequestError


def index(expected: list[int], actual: list[int]) -> float:
    """The definition, in plain Python."""
    total = 0.0
    for p, q in zip(expected, actual, strict=True):
        p, q = max(p / sum(expected), 1e-4), max(q / sum(actual), 1e-4)
        total += (q - p) * math.log(q / p)
    return total


def binned(train: np.ndarray, other: np.ndarray, missing: float = 0.0) -> float | None:
    """The drift of two columns of numbers, the way a report finds it."""
    edges = quantile_edges(train.astype(np.float32))
    counts = [NumberCounts((edges,)) for _ in range(2)]
    for count, values in zip(counts, (train, other), strict=True):
        absent = np.zeros(len(values), bool)
        if values is other:
            absent[: int(missing * len(values))] = True
        for part in np.array_split(np.arange(len(values)), 7):
            count.add(values[part, None].astype(np.float32), absent[part])
    return drift_of(counts[0].binned, counts[1].binned)


def test_the_index_is_its_definition():
    draw = np.random.default_rng(1)
    for _ in range(50):
        p, q = draw.integers(0, 200, (2, draw.integers(2, 24)))

        assert psi(p, q) == pytest.approx(index(p.tolist(), q.tolist()), rel=1e-12)
        assert psi(p, q) == pytest.approx(psi(q, p), rel=1e-12)
        assert psi(p, 3 * p) == pytest.approx(0, abs=1e-12)


def test_of_nothing_there_is_no_drift():
    assert psi(np.array([0, 0]), np.array([3, 1])) is None
    assert drift_of([np.array([3, 1])], [np.array([0, 0])]) is None


def test_one_distribution_drawn_twice_has_hardly_any():
    draws = np.random.default_rng(2).normal(size=(40, 2, 100_000))

    found = [binned(train, other) for train, other in draws]

    assert np.mean(found) == pytest.approx(9 * (2 / 100_000), rel=0.25)  # (bins - 1)(1/n + 1/m)
    assert max(found) < 0.0006


@pytest.mark.parametrize("shift", [0.1, 0.5, 1.0])
def test_a_shifted_normal_has_that_of_its_deciles(shift: float):
    normal = NormalDist()
    deciles = [-math.inf, *(normal.inv_cdf(n / 10) for n in range(1, 10)), math.inf]
    shares = [normal.cdf(b - shift) - normal.cdf(a - shift) for a, b in pairwise(deciles)]
    exact = sum((q - 0.1) * math.log(q / 0.1) for q in shares)
    train, other = np.random.default_rng(3).normal(size=(2, 200_000))

    assert binned(train, other + shift) == pytest.approx(exact, rel=0.04)
    if shift == 0.5:
        assert exact == pytest.approx(0.2355, abs=0.003)


def test_values_that_go_missing_are_drift():
    train, other = np.random.default_rng(4).normal(size=(2, 100_000))

    # A share of 0.2 in a bin that train has at the least share, and 0.08 in place of 0.1.
    exact = (0.2 - 1e-4) * math.log(0.2 / 1e-4) + 10 * (0.08 - 0.1) * math.log(0.08 / 0.1)

    assert binned(train, other, missing=0.2) == pytest.approx(exact, rel=0.01)


def test_ten_bins_hold_a_tenth_each():
    values = np.random.default_rng(5).exponential(size=100_000).astype(np.float32)

    edges = quantile_edges(values)

    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=10)
    assert counts.tolist() == [10_000] * 10


def test_a_value_that_fills_bins_has_its_own():
    zeros = np.zeros(900, np.float32)
    values = np.concatenate([zeros, np.arange(1, 101, dtype=np.float32)])
    below, above = (np.nextafter(np.float32(0), np.float32(end)) for end in (-1, 1))

    for edges in (quantile_edges(zeros), quantile_edges(values)):
        places = np.searchsorted(edges, [below, np.float32(0), above], side="left")
        assert len(set(places.tolist())) == 3


def test_the_most_frequent_codes_are_by_count_then_code():
    counts = CodeCounts(np.array([9, 9, 9, *[5, 7, 7, 0, 1], *[2] * 30]), first_value=3)

    top = top_codes(counts)

    assert top[:3] == (4, 5, 3)
    assert top[3:] == tuple(range(8, 8 + 17))
    assert top_codes(CodeCounts(np.array([9, 9, 9, 0, 3, 0]), first_value=3)) == (4,)


def report(**psi_of_valid: float | None) -> dict[str, Any]:
    values = {"valid": psi_of_valid, "test": dict.fromkeys(psi_of_valid, 9.0)}
    return {"drift": {"judged": ["valid"], "psi": values}}


def test_drift_above_the_limit_is_refused_by_name():
    drifted = report(price=0.3, item=0.61, age=None)

    check_drift(drifted, None)
    check_drift(drifted, 0.7)  # test, which is too small to judge, has 9
    with pytest.raises(DataError, match=r"'item', drift of valid: .* 0.25, got 0.610, 1 more"):
        check_drift(drifted, 0.25)


@pytest.mark.parametrize("limit", [0, -1.0, "0.2", True, float("nan")])
def test_a_limit_is_a_number_above_nothing(limit: Any):
    with pytest.raises(RequestError, match="max_drift"):
        check_drift(report(price=0.1), limit)
