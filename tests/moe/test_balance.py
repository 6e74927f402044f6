"""Balance losses equal their formulas, row by row, and published implementations."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recsys_moe.errors import RequestError
from recsys_moe.moe.balance import (
    chance_of_choice,
    importance_cv2,
    load,
    load_cv2,
    switch_loss,
    z_loss,
)
from recsys_moe.moe.balance_losses import BalanceLosses
from recsys_moe.moe.router_dselect_k import DSelectKRouter, selector_entropy, unreachable_mass
from recsys_moe.moe.router_top_p import entropy
from recsys_moe.moe.routing import Routing

E, K, N = 5, 2, 23
LOSSES: list[Callable[..., Tensor]] = [importance_cv2, load_cv2, switch_loss, z_loss]


def routed(logits_NE: Tensor, k: int = K, *, clean_NE: Tensor | None = None) -> Routing:
    """Top-k, renormalised, written here so that no router is needed."""
    probs_NE = logits_NE.softmax(-1)
    order = logits_NE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    weights_NK = probs_NE.gather(-1, order)
    spread_NE = None if clean_NE is None else torch.full_like(clean_NE, 0.7)
    return Routing(
        weights_NK / weights_NK.sum(-1, keepdim=True),
        order,
        probs_NE,
        logits_NE,
        clean=clean_NE,
        spread=spread_NE,
    )


def sample(rows: int = N, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Routing:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(rows, E, generator=generator, dtype=dtype)
    noise = 0.7 * torch.randn(rows, E, generator=generator, dtype=dtype)
    return routed(clean + noise, clean_NE=clean)


def cv2(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / len(values) / (mean**2 + 1e-10)


def plain_importance(routing: Routing) -> float:
    mass = [0.0] * E
    for experts, weights in zip(routing.index.tolist(), routing.weights.tolist(), strict=True):
        for e, weight in zip(experts, weights, strict=True):
            mass[e] += weight
    return cv2(mass)


def plain_load(routing: Routing) -> float:
    total = [0.0] * E
    for clean, noisy in zip(routing.clean.tolist(), routing.logits.tolist(), strict=True):
        for e in range(E):
            bar = sorted((v for i, v in enumerate(noisy) if i != e), reverse=True)[K - 1]
            total[e] += 0.5 * (1 + math.erf((clean[e] - bar) / 0.7 / math.sqrt(2)))
    return cv2(total)


def plain_switch(routing: Routing) -> float:
    f, p, rows = [0.0] * E, [0.0] * E, len(routing.probs)
    for experts, probs in zip(routing.index.tolist(), routing.probs.tolist(), strict=True):
        for e in experts:
            f[e] += 1 / (rows * K)
        for e in range(E):
            p[e] += probs[e] / rows
    return E * sum(a * b for a, b in zip(f, p, strict=True))


def plain_z(routing: Routing) -> float:
    logs = [math.log(sum(math.exp(v) for v in row)) for row in routing.logits.tolist()]
    return sum(v * v for v in logs) / len(logs)


PLAIN = [plain_importance, plain_load, plain_switch, plain_z]


@pytest.mark.parametrize(("loss", "plain"), list(zip(LOSSES, PLAIN, strict=True)))
def test_a_loss_is_its_formula(
    loss: Callable[..., Tensor], plain: Callable[[Routing], float]
) -> None:
    routing = sample()

    assert float(loss(routing)) == pytest.approx(plain(routing), abs=1e-12, rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_masked_rows_change_nothing(loss: Callable[..., Tensor]) -> None:
    logits = sample().logits.clone().requires_grad_()
    mask = torch.arange(N) % 3 != 0
    clean = logits.detach() - 0.1

    value = loss(routed(logits, clean_NE=clean), mask)
    (grad,) = torch.autograd.grad(value, logits)

    kept = logits.detach()[mask].requires_grad_()
    expected = loss(routed(kept, clean_NE=clean[mask]))
    (expected_grad,) = torch.autograd.grad(expected, kept)
    torch.testing.assert_close(value, expected, atol=1e-13, rtol=0)
    torch.testing.assert_close(grad[mask], expected_grad, atol=1e-13, rtol=0)
    assert not grad[~mask].any()


@pytest.mark.parametrize("loss", [importance_cv2, switch_loss, z_loss])
def test_a_masked_row_may_hold_anything(loss: Callable[..., Tensor]) -> None:
    logits = sample().logits.clone()
    mask = torch.arange(N) != 4
    expected = loss(routed(logits), mask)
    logits[4] = torch.nan

    torch.testing.assert_close(loss(routed(logits), mask), expected, atol=0, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rows", [0, 4])
def test_no_rows_cost_nothing(loss: Callable[..., Tensor], rows: int) -> None:
    assert float(loss(sample(rows), torch.zeros(rows, dtype=torch.bool))) == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_the_experts_numbers_do_not_matter(loss: Callable[..., Tensor]) -> None:
    routing, order = sample(), torch.tensor([3, 0, 4, 1, 2])
    moved = routed(routing.logits[:, order], clean_NE=routing.clean[:, order])

    torch.testing.assert_close(loss(moved), loss(routing), atol=1e-12, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_an_expert_out_of_sight_does_not_count(loss: Callable[..., Tensor]) -> None:
    routing = sample()
    unseen = torch.full((N, 1), -torch.inf, dtype=torch.float64)
    logits = torch.cat([routing.logits, unseen], 1).requires_grad_()
    wider = routed(logits, clean_NE=torch.cat([routing.clean, unseen], 1))

    value = loss(wider)
    (grad,) = torch.autograd.grad(value, logits)

    torch.testing.assert_close(value, loss(routing), atol=1e-12, rtol=0)
    assert grad.isfinite().all()


def test_the_switch_loss_is_one_in_balance_and_e_in_collapse() -> None:
    balanced = routed(40 * torch.eye(E, dtype=torch.float64).repeat(7, 1), 1)
    collapsed = routed(40 * torch.eye(E, dtype=torch.float64)[:1].repeat(7, 1), 1)

    assert float(switch_loss(balanced)) == pytest.approx(1, abs=1e-12)
    assert float(switch_loss(collapsed)) == pytest.approx(E, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_conventions_of_the_switch_loss_differ_by_k(k: int) -> None:
    routing = routed(sample().logits, k)

    torch.testing.assert_close(switch_loss(routing, f_sums_to="k"), k * switch_loss(routing))


def test_a_dense_gate_sends_shares_of_rows() -> None:
    def dense(logits_NE: Tensor) -> Routing:
        return Routing(logits_NE.softmax(-1), None, logits_NE.softmax(-1), logits_NE)

    uniform, one = torch.zeros(N, E), 40 * torch.eye(E)[:1].repeat(N, 1)

    assert float(switch_loss(dense(uniform))) == pytest.approx(1)
    assert float(switch_loss(dense(one))) == pytest.approx(E)
    assert float(importance_cv2(dense(one))) == pytest.approx(E - 1)
    torch.testing.assert_close(load(dense(one)), torch.eye(E)[0] * N)


def test_a_load_is_a_constant() -> None:
    logits = sample().logits.requires_grad_()
    dense = Routing(logits.softmax(-1), None, logits.softmax(-1), logits)
    assert not load(dense).requires_grad


def test_an_unused_slot_is_no_load() -> None:
    routing = sample()
    kept = torch.ones(N, K, dtype=torch.bool)
    kept[::2, 1] = False
    half = Routing(routing.weights * kept, routing.index, routing.probs, routing.logits, kept)

    assert float(load(half).sum()) == int(kept.sum())


def test_the_smooth_load_is_the_chance_of_being_chosen() -> None:
    """Drawing e's own noise anew, the others' kept, e is among the K largest that often."""
    draws, routing = 200_000, sample(3)
    chance_NE = chance_of_choice(routing)
    generator = torch.Generator().manual_seed(5)
    for n in range(3):
        for e in range(E):
            fresh = torch.randn(draws, generator=generator, dtype=torch.float64)
            drawn_SE = routing.logits[n].repeat(draws, 1)
            drawn_SE[:, e] = routing.clean[n, e] + 0.7 * fresh
            chosen = (drawn_SE.topk(K).indices == e).any(-1).double().mean()
            assert float(chance_NE[n, e]) == pytest.approx(float(chosen), abs=0.005)


def test_the_smooth_load_needs_noise() -> None:
    with pytest.raises(RequestError, match="noisy top-k router in training"):
        load_cv2(routed(sample().logits))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_the_formula(loss: Callable[..., Tensor]) -> None:
    def of(logits_NE: Tensor) -> Tensor:
        return loss(routed(logits_NE, clean_NE=clean))

    clean = sample(6).clean
    assert torch.autograd.gradcheck(of, sample(6).logits.clone().requires_grad_())


def test_losses_stay_float32_under_autocast_and_compile_whole() -> None:
    routing = sample(dtype=torch.float32)
    for loss in LOSSES:
        whole = torch.compile(loss, backend="eager", fullgraph=True)
        with torch.autocast("cpu", torch.bfloat16):
            value = whole(routing)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(routing), atol=1e-6, rtol=0)


def test_published_balance_losses_agree() -> None:
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    logits = sample(64, dtype=torch.float32).logits
    mask = torch.arange(64) % 5 != 0

    ours = switch_loss(routed(logits), f_sums_to="k")
    theirs = mixtral.load_balancing_loss_func((logits,), E, K)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)

    ours = switch_loss(routed(logits), mask, f_sums_to="k")
    theirs = mixtral.load_balancing_loss_func((logits,), E, K, mask.view(4, 16).long())
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_published_switch_losses_agree() -> None:
    name = "transformers.models.switch_transformers.modeling_switch_transformers"
    switch = pytest.importorskip(name)
    routing = routed(sample(64, dtype=torch.float32).logits, 1)

    theirs = switch.load_balancing_loss_func(routing.probs[None], routing.index[:, 0][None])
    torch.testing.assert_close(switch_loss(routing), theirs, atol=1e-5, rtol=0)
    theirs = switch.router_z_loss_func(routing.logits.view(4, 16, E))
    torch.testing.assert_close(z_loss(routing), theirs, atol=1e-5, rtol=0)


def test_losses_are_averaged_over_routers_and_weighed() -> None:
    first, second = sample(seed=1), sample(seed=2)
    losses = BalanceLosses(switch=0.01, z=0.001)([first, second])

    assert list(losses) == ["switch", "z"]
    for name, loss, weight in (("switch", switch_loss, 0.01), ("z", z_loss, 0.001)):
        torch.testing.assert_close(losses[name], weight * (loss(first) + loss(second)) / 2)


def test_the_smooth_load_is_asked_for_in_training_only() -> None:
    losses = BalanceLosses(load=0.1)

    assert list(losses([sample()])) == ["load"]
    assert losses.eval()([routed(sample().logits)]) == {}


def test_routers_own_losses_have_a_coefficient_too() -> None:
    routing = DSelectKRouter(4, 6, 2)(torch.randn(N, 4))
    losses = BalanceLosses(entropy=0.1, selector_entropy=0.2, unreachable_mass=0.3)([routing])

    assert losses == {
        "entropy": 0.1 * entropy(routing),
        "selector_entropy": 0.2 * selector_entropy(routing),
        "unreachable_mass": 0.3 * unreachable_mass(routing),
    }
    with pytest.raises(RequestError):
        BalanceLosses(selector_entropy=0.1)([sample()])


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, True])
def test_a_coefficient_is_a_number_of_at_least_zero(value: float) -> None:
    with pytest.raises(RequestError, match=r"balance\.switch: wanted a number >= 0"):
        BalanceLosses(switch=value)
    with pytest.raises(RequestError, match="f_sums_to: wanted 'one' or 'k'"):
        BalanceLosses(switch=0.1, f_sums_to="two")  # type: ignore[arg-type]
