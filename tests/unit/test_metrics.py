import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from recsys_moe import metrics
from recsys_moe.predictions import evaluate_outputs, outcomes, probabilities
from recsys_moe.spec import Column, FeatureSpec, Task

SPEC = FeatureSpec(
    dataset="toy",
    columns=(Column(name="a", type="string"),),
    tables=(),
    features=(),
    tasks=(Task(name="click", label="c"), Task(name="conversion", label="v", space="click")),
    train_rows=1,
)


def pairs_won(p: np.ndarray, y: np.ndarray) -> float:
    """AUC by counting every pair."""
    pairs = [(a, b) for a, b in itertools.product(p[y == 1], p[y == 0])]
    return float(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]))


def sample(rows: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.integers(0, 20, rows) / 20 + 0.01  # many ties
    return p, (rng.random(rows) < p).astype(float), rng.integers(-1, 15, rows)


def test_auc_counts_pairs_and_ties_half() -> None:
    p, y, _ = sample()
    assert metrics.auc(p, y) == pytest.approx(pairs_won(p, y), abs=1e-12)


def test_auc_of_one_class_is_unknown() -> None:
    assert metrics.auc(np.array([0.1, 0.2]), np.zeros(2)) is None


@pytest.mark.parametrize("seed", range(5))
def test_gauc_averages_each_users_auc_by_rows(seed: int) -> None:
    p, y, users = sample(seed=seed)
    aucs, rows = [], []
    for user in set(users[users >= 0].tolist()):
        mine = users == user
        if 0 < y[mine].sum() < mine.sum():
            aucs.append(pairs_won(p[mine], y[mine]))
            rows.append(mine.sum())

    assert metrics.gauc(p, y, users) == pytest.approx(np.average(aucs, weights=rows), abs=1e-12)


def test_gauc_without_a_mixed_user_is_unknown() -> None:
    assert metrics.gauc(np.array([0.2, 0.3]), np.array([0.0, 1.0]), np.array([1, 2])) is None


def test_log_loss_is_scikit_learns() -> None:
    p, y, _ = sample()
    assert metrics.log_loss(p, y) == pytest.approx(sklearn_log_loss(y, np.clip(p, 0, 1 - 1e-12)))


def test_predicting_the_base_rate_has_normalized_entropy_one() -> None:
    _, y, _ = sample()
    assert metrics.normalized_entropy(np.full_like(y, y.mean()), y) == pytest.approx(1)


def test_twice_the_probability_is_calibration_two() -> None:
    y = np.array([0.0, 1.0, 0.0, 0.0])
    assert metrics.calibration(np.full(4, 0.5), y) == pytest.approx(2)


def test_each_output_is_measured_in_its_own_space() -> None:
    labels = {"click": np.array([1.0, 1, 0, 1]), "conversion": np.array([1.0, 0, 0, 0])}
    known = {"click": np.ones(4), "conversion": np.array([1.0, 1, 0, 0])}

    found = outcomes(SPEC, labels, known)

    assert found["click"]["rows"].tolist() == [True] * 4
    assert found["conversion"]["rows"].tolist() == [True, True, False, False]
    assert found["click_and_conversion"]["rows"].tolist() == [True, True, True, False]
    assert found["click_and_conversion"]["labels"].tolist() == [1, 0, 0]
    assert [found[name]["space"] for name in found] == ["all", "click", "all"]


def test_a_product_is_the_product_of_its_factors() -> None:
    rng = np.random.default_rng(0)
    logits = {"click": rng.normal(size=50), "conversion": rng.normal(size=50)}
    labels = {"click": np.ones(50), "conversion": (rng.random(50) < 0.5).astype(float)}
    known = {"click": np.ones(50), "conversion": np.ones(50)}

    found = evaluate_outputs(SPEC, logits, labels, known)

    p = np.array(
        [1 / (1 + math.exp(-a)) / (1 + math.exp(-b)) for a, b in zip(*logits.values(), strict=True)]
    )
    assert found["click_and_conversion"]["log_loss"] == pytest.approx(
        metrics.log_loss(p, labels["conversion"]), abs=1e-12
    )


def test_a_kept_tenth_of_the_negatives_shifts_the_odds() -> None:
    rng = np.random.default_rng(3)
    logits = {"click": rng.normal(scale=4, size=500), "conversion": rng.normal(size=500)}
    rate = 0.1
    click, conversion = SPEC.tasks
    sampled = replace(SPEC, tasks=(replace(click, keep_rate=rate), conversion))

    raw, found = probabilities(SPEC, logits), probabilities(sampled, logits)

    p = raw["click"]
    np.testing.assert_allclose(found["click"], p / (p + (1 - p) / rate), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found["conversion"], raw["conversion"])
    product = found["click"] * found["conversion"]
    np.testing.assert_allclose(found["click_and_conversion"], product, rtol=1e-12)


def test_metrics_take_a_label_of_any_weight_as_known() -> None:
    labels = {"click": np.array([1.0, 0, 1, 0]), "conversion": np.array([1.0, 0, 0, 0])}
    ones = {"click": np.ones(4), "conversion": np.array([1.0, 0, 1, 0])}
    weighted = {"click": np.array([0.2, 10, 3, 1]), "conversion": np.array([7.0, 0, 0.5, 0])}
    logits = {"click": np.arange(4.0), "conversion": np.arange(4.0)}

    assert evaluate_outputs(SPEC, logits, labels, ones) == evaluate_outputs(
        SPEC, logits, labels, weighted
    )


@pytest.mark.parametrize("transform", ["identity", "log1p"])
def test_a_regression_is_measured_in_its_own_unit(transform: str) -> None:
    rng = np.random.default_rng(4)
    watch = Task(
        name="watch",
        label="w",
        space="click",
        kind="regression",
        transform=transform,
        mean=2.0,
        scale=0.5,
    )
    spec = replace(SPEC, tasks=(*SPEC.tasks, watch))
    z, y = rng.normal(size=60), rng.exponential(5, 60)
    click, known = rng.integers(0, 2, 60).astype(float), rng.integers(0, 3, 60) / 2
    logits = {"click": z, "conversion": z, "watch": z}
    labels = {"click": click, "conversion": click, "watch": y}

    found = evaluate_outputs(spec, logits, labels, dict.fromkeys(labels, known))["watch"]

    mine = [
        (max(0.0, math.expm1(v / 0.5 + 2.0)) if transform == "log1p" else v / 0.5 + 2.0, amount)
        for v, amount, inside, there in zip(z, y, click, known, strict=True)
        if inside and there
    ]
    predicted, amounts = (np.array(values) for values in zip(*mine, strict=True))
    assert (found["space"], found["rows"]) == ("click", len(mine))
    assert found["mean"] == pytest.approx(amounts.mean())
    assert found["predicted_mean"] == pytest.approx(predicted.mean())
    assert found["rmse"] == pytest.approx(mean_squared_error(amounts, predicted) ** 0.5)
    assert found["mae"] == pytest.approx(mean_absolute_error(amounts, predicted))
    assert found["r2"] == pytest.approx(r2_score(amounts, predicted))


def test_equal_amounts_have_no_share_of_variance() -> None:
    assert metrics.r2(np.array([1.0, 2.0]), np.array([0.1, 0.1])) is None
