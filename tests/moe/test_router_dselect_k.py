"""DSelect-k: what its two penalties do, and where its weights go missing."""

import math
from typing import Any

import pytest
import torch

from recsys_moe.moe.router_dselect_k import (
    DSelectKRouter,
    selector_entropy,
    smooth_step,
    unreachable_mass,
)
from tests.moe.router_cases import random, rows


def test_the_step_is_a_step_with_a_smooth_middle() -> None:
    t = torch.tensor([-9.0, -0.5, 0.0, 0.5, 9.0], dtype=torch.float64, requires_grad=True)
    step = smooth_step(t, 1.0)
    step.sum().backward()

    assert step.tolist() == [0, 0, 0.5, 1, 1]
    assert t.grad is not None
    assert t.grad.tolist() == [0, 0, 1.5, 0, 0]
    torch.testing.assert_close(smooth_step(-t, 0.7), 1 - smooth_step(t, 0.7))


@pytest.mark.parametrize(("size", "leaks"), [(4, False), (8, False), (5, True), (6, True)])
def test_weights_sum_to_one_in_evaluation_whatever_the_number(size: int, leaks: bool) -> None:
    router, x = random(lambda _: DSelectKRouter(8, size, 2)), rows(200)
    ones = torch.ones(200)

    torch.testing.assert_close(router.eval()(x).weights.sum(1), ones)
    training = router.train()(x)
    assert router.leaks == leaks
    assert (training.weights.sum(1).min() < 0.9) == leaks
    torch.testing.assert_close(training.probs.sum(1), ones)


def test_the_penalties_are_their_formulas() -> None:
    router, mask = random(lambda _: DSelectKRouter(8, 6, 2)).double(), torch.arange(12) > 4
    routing = router(rows(12, dtype=torch.float64))
    entropies, masses = [], []
    for q_JE in routing.selectors.tolist():
        entropies.append(-sum(q * math.log(q + 1e-6) for q_E in q_JE for q in q_E))
        masses.append(sum(1 / max(sum(q_E), 1e-6) for q_E in q_JE))

    for penalty, values in ((selector_entropy, entropies), (unreachable_mass, masses)):
        assert penalty(routing).item() == pytest.approx(sum(values) / 12, rel=1e-12)
        assert penalty(routing, mask).item() == pytest.approx(sum(values[5:]) / 7, rel=1e-12)


def descend(router: DSelectKRouter, entropy_weight: float, mass_weight: float) -> None:
    optimizer, x = torch.optim.Adam(router.parameters(), lr=0.05), rows(256)
    for _ in range(500):
        routing = router(x)
        loss = entropy_weight * selector_entropy(routing) + mass_weight * unreachable_mass(routing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_the_entropy_penalty_leaves_k_experts_a_row() -> None:
    torch.manual_seed(0)
    router = DSelectKRouter(8, 6, 2)
    before = router(rows(256)).weights.topk(2, dim=1).values.sum(1)

    descend(router, 1.0, 1.0)

    routing = router(rows(256))
    assert before.max() < 0.4
    assert (routing.weights.topk(2, dim=1).values.sum(1) > 0.99).float().mean() > 0.9
    assert (routing.kept.sum(1) <= 2).float().mean() > 0.7


def test_without_the_mass_penalty_entropy_hides_in_unused_codes() -> None:
    torch.manual_seed(0)
    router = random(lambda _: DSelectKRouter(8, 6, 2))

    descend(router, 1.0, 0.0)

    assert router(rows(256)).weights.sum(1).min() < 0.5


def test_a_row_that_reaches_no_expert_is_shared_evenly() -> None:
    router = DSelectKRouter(8, 5, 1, visible=[True, True, False, True, True]).eval()
    with torch.no_grad():
        router.bits.weight.zero_()
        router.bits.bias.fill_(1.0)  # code 7 of five experts

    routing = router(rows(3))

    assert routing.weights.tolist() == [[0.25, 0.25, 0, 0.25, 0.25]] * 3
    assert not router.train()(rows(3)).weights.any()


def static(**sizes: Any) -> DSelectKRouter:
    return random(lambda _: DSelectKRouter(8, 6, 2, per_row=False, **sizes))


def test_a_gate_of_the_task_alone_treats_all_rows_alike() -> None:
    router = static()
    routing = router(rows(5))
    bits = smooth_step(router.bits.bias.detach(), 1.0).view(2, 3)
    alpha = router.alpha.bias.detach().softmax(0)

    expected = [
        sum(
            float(alpha[j])
            * math.prod(float(bits[j, b] if e >> (2 - b) & 1 else 1 - bits[j, b]) for b in range(3))
            for j in range(2)
        )
        for e in range(6)
    ]

    assert routing.weights.shape == (5, 6)
    for row in routing.weights.tolist():
        assert row == pytest.approx(expected, abs=1e-6)
    assert router(rows(0)).weights.shape == (0, 6)


def test_it_is_the_gate_of_rows_that_all_are_zero() -> None:
    of_rows, alone = random(lambda _: DSelectKRouter(8, 6, 2)), static()
    alone.bits.bias.data.copy_(of_rows.bits.bias)
    alone.alpha.bias.data.copy_(of_rows.alpha.bias)

    zeros = torch.zeros(3, 8)
    torch.testing.assert_close(alone(zeros).weights, of_rows(zeros).weights)
    assert torch.equal(alone(zeros).weights, alone(rows(3)).weights)


def test_its_numbers_learn_and_a_masked_row_teaches_nothing() -> None:
    router, x, mask = static(), rows(12), torch.arange(12) > 4
    found = []
    for values in (x, x.masked_fill(~mask.unsqueeze(1), 3.0)):
        router.zero_grad()
        (router(values, mask).dense() * torch.arange(6.0)).sum().backward()
        found.append([p.grad.clone() for p in router.parameters()])

    for first, second in zip(*found, strict=True):
        assert first.any()
        assert torch.equal(first, second)


def test_its_numbers_are_biases_which_do_not_decay() -> None:
    assert [name for name, _ in static().named_parameters()] == ["bits.bias", "alpha.bias"]
