import math
from dataclasses import replace

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


def test_label_weights_multiply_along_the_chain() -> None:
    weighted = batch()
    weighted.known["click"] = torch.tensor([0.5, 10.0, 1.0, 2.0, 4.0])
    weighted.known["conversion"] = torch.tensor([3.0, 0.0, 0.25, 0.0, 0.0])

    found = losses.auto(spec())(logits(), weighted)

    click = [w * k for w, k in zip(WEIGHTS, weighted.known["click"].tolist(), strict=True)]
    conversion = weighted.known["conversion"].tolist()
    total = rows = 0.0
    for i in range(5):
        p, own = sigmoid(CLICK[i]) * sigmoid(CONVERSION[i]), sigmoid(CONVERSION[i])
        if not CLICKED[i]:
            total += click[i] * -math.log(1 - p)
            rows += click[i]
        else:
            terms = -math.log(p) - math.log(own) if CONVERTED[i] else -math.log((1 - p) * (1 - own))
            total += click[i] * conversion[i] * terms
            rows += click[i] * conversion[i]
    assert found["conversion"].item() == pytest.approx(0.5 * total / rows, rel=1e-5)
    expected = mean(
        [
            (click[i], -math.log(p if CLICKED[i] else 1 - p))
            for i, p in enumerate(map(sigmoid, CLICK))
        ]
    )
    assert found["click"].item() == pytest.approx(expected, rel=1e-5)


def test_a_label_of_weight_three_is_three_rows() -> None:
    once = batch()
    once.known["click"] = torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0])
    places = [0, 0, 0, 1, 2, 3, 4]
    thrice = Batch(
        codes=torch.zeros(7, 0),
        numbers=torch.zeros(7, 0),
        labels={task: label[places] for task, label in batch().labels.items()},
        known={task: known[places] for task, known in batch().known.items()},
        weights=batch().weights[places],
    )
    repeated = {task: logit[places] for task, logit in logits().items()}

    for choice in (losses.per_task, losses.auto):
        one, three = choice(spec())(logits(), once), choice(spec())(repeated, thrice)
        for task in one:
            torch.testing.assert_close(one[task], three[task])


@pytest.mark.parametrize("transform", ["identity", "log1p"])
def test_a_regression_is_a_squared_error_in_its_space(transform: str) -> None:
    seconds = [7.5, 0.0, 0.25, 120.0, 0.0]
    known = [1.0, 0.0, 2.0, 1.0, 0.0]
    watch = Task(
        name="watch",
        label="watch",
        space="click",
        weight=2.0,
        kind="regression",
        transform=transform,
        mean=1.5,
        scale=0.4,
    )
    both = replace(spec(), tasks=(*spec().tasks, watch))
    more = batch()
    more.labels["watch"], more.known["watch"] = torch.tensor(seconds), torch.tensor(known)
    z = [0.1, 5.0, -1.0, 0.7, 3.0]

    found = losses.auto(both)({**logits(), "watch": torch.tensor(z)}, more)

    terms = [
        (
            WEIGHTS[i] * known[i],
            (z[i] - ((math.log1p(y) if transform == "log1p" else y) - 1.5) * 0.4) ** 2,
        )
        for i, y in enumerate(seconds)
        if CLICKED[i]
    ]
    assert found["watch"].item() == pytest.approx(2.0 * mean(terms), rel=1e-6)
    alone = losses.auto(spec())(logits(), batch())
    assert {task: found[task].item() for task in alone} == {k: v.item() for k, v in alone.items()}


def test_large_labels_keep_their_differences() -> None:
    amount = Task(name="a", label="a", kind="regression", mean=16_000_000.25, scale=1.0)
    labels_B = torch.tensor([16_000_001.0, 15_999_998.0])
    assert losses.standardised(amount, labels_B).tolist() == [0.75, -2.25]


def test_entire_space_wants_a_binary_chain() -> None:
    watch = Task(name="watch", label="watch", space="click", kind="regression")
    with pytest.raises(RequestError, match="loss=entire_space"):
        losses.entire_space(replace(spec(), tasks=(spec().tasks[0], watch)))
