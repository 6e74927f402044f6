import math

import pytest
import torch

from recsys_moe import losses
from recsys_moe.batch import Batch
from recsys_moe.errors import RequestError
from recsys_moe.spec import Column, FeatureSpec, Task

CLICK, CONVERSION = [0.3, -1.2, 0.7, 2.0, -0.4], [0.1, 0.9, -2.0, 0.5, 1.5]
CLICKED, CONVERTED = [1, 0, 1, 1, 0], [1, 0, 0, 0, 0]
CONVERSION_KNOWN = [1, 0, 1, 0, 0]  # the fourth clicked, but is too recent to know
WEIGHTS = [1.0, 2.0, 0.5, 1.0, 3.0]


def spec(space: str = "click") -> FeatureSpec:
    return FeatureSpec(
        dataset="toy",
        columns=(Column(name="a", type="string"),),
        tables=(),
        features=(),
        tasks=(
            Task(name="click", label="click"),
            Task(name="conversion", label="conversion", space=space, weight=0.5),
        ),
        train_rows=1,
    )


def batch() -> Batch:
    return Batch(
        codes=torch.zeros(5, 0),
        numbers=torch.zeros(5, 0),
        labels={
            "click": torch.tensor(CLICKED).float(),
            "conversion": torch.tensor(CONVERTED).float(),
        },
        known={"click": torch.ones(5), "conversion": torch.tensor(CONVERSION_KNOWN).float()},
        weights=torch.tensor(WEIGHTS),
    )


def logits() -> dict[str, torch.Tensor]:
    return {"click": torch.tensor(CLICK), "conversion": torch.tensor(CONVERSION)}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def mean(terms: list[tuple[float, float]]) -> float:
    return sum(w * loss for w, loss in terms) / sum(w for w, _ in terms)


def test_per_task_counts_only_known_rows_of_the_tasks_own_space() -> None:
    found = losses.per_task(spec())(logits(), batch())

    expected = 0.5 * mean(
        [
            (WEIGHTS[i], -math.log(p if CONVERTED[i] else 1 - p))
            for i, p in enumerate(map(sigmoid, CONVERSION))
            if CLICKED[i] and CONVERSION_KNOWN[i]
        ]
    )
    assert found["conversion"].item() == pytest.approx(expected, abs=1e-6)


def test_entire_space_learns_the_product_of_all_rows_and_the_task_in_its_space() -> None:
    found = losses.auto(spec())(logits(), batch())

    total = rows = 0.0
    for i in range(5):
        p, own = sigmoid(CLICK[i]) * sigmoid(CONVERSION[i]), sigmoid(CONVERSION[i])
        if not CLICKED[i]:  # a row without a click is a known negative of the product
            total += WEIGHTS[i] * -math.log(1 - p)
        elif CONVERSION_KNOWN[i]:
            total += WEIGHTS[i] * -math.log(p if CONVERTED[i] else 1 - p)
            total += WEIGHTS[i] * -math.log(own if CONVERTED[i] else 1 - own)
        rows += WEIGHTS[i] * (not CLICKED[i] or CONVERSION_KNOWN[i])
    assert found["conversion"].item() == pytest.approx(0.5 * total / rows, abs=1e-6)


def test_auto_is_per_task_where_nothing_is_chained() -> None:
    free = spec(space="all")

    auto, per_task = losses.auto(free)(logits(), batch()), losses.per_task(free)(logits(), batch())

    assert {k: v.item() for k, v in auto.items()} == {k: v.item() for k, v in per_task.items()}


def test_entire_space_without_a_chain_is_a_wrong_request() -> None:
    with pytest.raises(RequestError, match="loss=entire_space"):
        losses.entire_space(spec(space="all"))


def test_extreme_logits_keep_finite_losses_and_gradients() -> None:
    large = {task: torch.full((5,), 80.0, requires_grad=True) for task in ("click", "conversion")}

    total = torch.stack(list(losses.auto(spec())(large, batch()).values())).sum()
    total.backward()

    assert torch.isfinite(total)
    assert all(torch.isfinite(logit.grad).all() for logit in large.values())


def test_a_batch_that_says_nothing_of_a_task_costs_nothing() -> None:
    silent = batch()
    silent.labels["click"].zero_()

    assert losses.per_task(spec())(logits(), silent)["conversion"].item() == 0
