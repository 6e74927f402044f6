"""Routers whose rows depend on each other: experts that choose, and slots that blend."""

import math

import pytest
import torch
from torch import Tensor, nn

from recsys_moe.moe.banks import MLPBank
from recsys_moe.moe.dispatch import combine
from recsys_moe.moe.router_expert_choice import ExpertChoiceRouter
from recsys_moe.moe.router_soft_moe import SoftMoERouter
from tests.moe.router_cases import VISIBLE, rows


class Linears(nn.Module):
    """A bank without a trick: one matrix an expert."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.weights_EDO = nn.Parameter(torch.randn(num_experts, 8, 3, dtype=torch.float64))

    def batched(self, x_ECD: Tensor) -> Tensor:
        return x_ECD @ self.weights_EDO


def taken(scores: list[float], capacity: int, allowed: list[int]) -> list[int]:
    return sorted(allowed, key=lambda n: (-scores[n], n))[:capacity]


@pytest.mark.parametrize("count", [1, 2, 7, 24])
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("masked", [False, True])
def test_each_expert_takes_its_best_rows(count: int, factor: float, masked: bool) -> None:
    torch.manual_seed(0)
    router, bank = ExpertChoiceRouter(8, 4, capacity_factor=factor).double(), Linears(4)
    x = rows(count, dtype=torch.float64)
    allowed = [n for n in range(count) if not masked or n % 3 != 1]
    mask = torch.tensor([n in allowed for n in range(count)]) if masked else None
    s = (x @ router.linear.weight.T).softmax(1).tolist()
    y = torch.zeros(count, 3, dtype=torch.float64)
    capacity = math.ceil(len(allowed) * factor / 4)
    expected = torch.zeros(count, 4, dtype=torch.float64)
    for e in range(4):
        for n in taken([row[e] for row in s], capacity, allowed):
            y[n] += s[n][e] * (x[n] @ bank.weights_EDO[e])
            expected[n, e] = s[n][e]

    mixed, routing = router.mix(x, bank, mask)

    torch.testing.assert_close(mixed, y, rtol=0, atol=1e-12)
    torch.testing.assert_close(routing.dense(), expected, rtol=0, atol=1e-12)
    assert routing.counts().tolist() == [min(capacity, len(allowed))] * 4


def test_each_load_is_the_same() -> None:
    router = ExpertChoiceRouter(8, 6, capacity_factor=1.5, visible=VISIBLE)

    counts = router(rows(100)).counts()

    assert counts.tolist() == [25 * shown for shown in VISIBLE]


def test_ties_go_to_the_first_rows() -> None:
    router = ExpertChoiceRouter(8, 4, capacity_factor=1.0)
    nn.init.zeros_(router.linear.weight)

    kept = router(rows(12)).kept

    assert kept is not None
    assert kept.tolist() == [[True] * 4] * 3 + [[False] * 4] * 9


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_soft_moe_blends_in_and_out(slots: int, masked: bool) -> None:
    torch.manual_seed(0)
    router, bank = SoftMoERouter(8, 4, slots_per_expert=slots).double(), Linears(4)
    x = rows(11, dtype=torch.float64)
    allowed = [n for n in range(11) if not masked or n % 3 != 1]
    mask = torch.tensor([n in allowed for n in range(11)]) if masked else None
    logits = (x @ router.phi_DS).tolist()
    outputs = []
    for s in range(4 * slots):
        total = sum(math.exp(logits[n][s]) for n in allowed)
        blend = sum(math.exp(logits[n][s]) / total * x[n] for n in allowed)
        outputs.append(blend @ bank.weights_EDO[s // slots])
    y = torch.zeros(11, 3, dtype=torch.float64)
    for n in allowed:
        total = sum(math.exp(v) for v in logits[n])
        y[n] = sum(math.exp(v) / total * out for v, out in zip(logits[n], outputs, strict=True))

    mixed, routing = router.mix(x, bank, mask)

    torch.testing.assert_close(mixed, y, rtol=0, atol=1e-12)
    share = torch.tensor(logits, dtype=torch.float64).softmax(1).view(11, 4, slots).sum(2)
    torch.testing.assert_close(routing.probs, share, rtol=0, atol=1e-12)
    torch.testing.assert_close(routing.dense(), router(x, mask).dense(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["choice", "soft"])
@pytest.mark.parametrize("count", [0, 5])
def test_a_batch_without_a_row_to_count_is_zero(kind: str, count: int) -> None:
    router = (
        ExpertChoiceRouter(8, 4, capacity_factor=1.0)
        if kind == "choice"
        else SoftMoERouter(8, 4, slots_per_expert=2)
    ).double()
    x = rows(count, dtype=torch.float64).requires_grad_()

    mixed, _ = router.mix(x, Linears(4), torch.zeros(count, dtype=torch.bool))
    mixed.sum().backward()

    assert mixed.shape == (count, 3)
    assert not mixed.any()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["choice", "soft"])
def test_mixing_is_differentiable_and_follows_its_rows(kind: str) -> None:
    torch.manual_seed(1)
    router = (
        ExpertChoiceRouter(8, 4, capacity_factor=1.0)
        if kind == "choice"
        else SoftMoERouter(8, 4, slots_per_expert=2)
    ).double()
    bank, x, order = Linears(4), rows(9, dtype=torch.float64), torch.randperm(9)
    y, _ = router.mix(x, bank)

    torch.testing.assert_close(router.mix(x[order], bank)[0], y[order], rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda v: router.mix(v, bank)[0], (x.requires_grad_(),))


def test_other_rows_change_a_rows_experts() -> None:
    router, x = ExpertChoiceRouter(8, 4, capacity_factor=1.0), rows(64)

    assert not torch.equal(router(x).chosen()[:8], router(x[:8]).chosen())


@pytest.mark.parametrize("masked", [False, True])
def test_computing_the_chosen_pairs_alone_is_computing_all(masked: bool) -> None:
    router, bank = ExpertChoiceRouter(8, 4, capacity_factor=1.5).double(), MLPBank(4, 8, [6, 3])
    x, bank = rows(21, dtype=torch.float64), bank.double()
    mask = torch.arange(21) % 3 > 0 if masked else None

    y, routing = router.mix(x, bank, mask)

    torch.testing.assert_close(y, combine(x, routing, bank, how="dense"), rtol=0, atol=1e-12)
