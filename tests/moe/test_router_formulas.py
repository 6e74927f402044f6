"""Each router is its formula, written out row by row in plain Python."""

import math

import pytest
import torch

from recsys_moe.moe.router_cosine import CosineRouter
from recsys_moe.moe.router_dselect_k import DSelectKRouter
from recsys_moe.moe.router_hierarchical import HierarchicalRouter
from recsys_moe.moe.router_sigmoid import SigmoidRouter
from recsys_moe.moe.router_softmax import SoftmaxRouter
from recsys_moe.moe.router_top_k import NoisyTopKRouter, TopKRouter
from recsys_moe.moe.router_top_p import TopPRouter, entropy
from recsys_moe.moe.routing import Routing
from tests.moe.router_cases import VISIBLE, random, rows

X = rows(29, dtype=torch.float64)
Rows = list[list[float]]


def linear(weight: torch.Tensor, x: list[float], bias: torch.Tensor | None = None) -> list[float]:
    add = [0.0] * len(weight) if bias is None else bias.tolist()
    return [
        b + math.fsum(w * v for w, v in zip(row, x, strict=True))
        for row, b in zip(weight.tolist(), add, strict=True)
    ]


def softmax(logits: list[float]) -> list[float]:
    e = [math.exp(value - max(logits)) for value in logits]
    return [value / sum(e) for value in e]


def best(scores: list[float], k: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda e: (-scores[e], e))[:k]


def place(weights: dict[int, float], size: int) -> list[float]:
    return [weights.get(e, 0.0) for e in range(size)]


def assert_dense(routing: Routing, expected: Rows) -> None:
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(routing.dense().detach(), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.25, 4.0])
def test_dense_softmax(temperature: float) -> None:
    router = SoftmaxRouter(8, 5, temperature=temperature).double()
    w, b = router.linear.weight, router.linear.bias

    assert_dense(
        router(X), [softmax([v / temperature for v in linear(w, x, b)]) for x in X.tolist()]
    )


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("renormalise", [True, False])
def test_top_k(k: int, renormalise: bool) -> None:
    router = TopKRouter(8, 5, k, renormalise=renormalise).double()
    expected: Rows = []
    for x in X.tolist():
        p = softmax(linear(router.linear.weight, x))
        chosen = best(p, k)
        total = sum(p[e] for e in chosen) if renormalise else 1.0
        expected.append(place({e: p[e] / total for e in chosen}, 5))

    assert_dense(router(X), expected)


def test_switch_takes_the_probability_of_the_best_expert() -> None:
    router = TopKRouter(8, 5, 1, renormalise=False).double()

    routing = router(X)

    torch.testing.assert_close(routing.weights[:, 0], routing.probs.max(1).values, rtol=0, atol=0)
    assert torch.equal(routing.index[:, 0], routing.logits.argmax(1))


def test_noisy_top_k_adds_noise_in_training_only() -> None:
    router = random(lambda _: NoisyTopKRouter(8, 5, 2)).double()
    torch.manual_seed(11)
    noise = torch.randn(29, 5, dtype=torch.float64).tolist()
    noisy, clean = [], []
    for x, eps in zip(X.tolist(), noise, strict=True):
        plain, s = linear(router.linear.weight, x), linear(router.noise.weight, x)
        h = [a + e * math.log1p(math.exp(b)) for a, b, e in zip(plain, s, eps, strict=True)]
        for values, out in ((h, noisy), (plain, clean)):
            chosen = best(values, 2)
            weights = softmax([values[e] for e in chosen])
            out.append(place(dict(zip(chosen, weights, strict=True)), 5))

    torch.manual_seed(11)
    routing = router.train()(X)
    assert_dense(routing, noisy)
    torch.testing.assert_close(routing.spread, torch.nn.functional.softplus(router.noise(X)))
    torch.testing.assert_close(routing.clean, router.linear(X))
    assert_dense(router.eval()(X), clean)
    assert router(X).spread is None


def test_noisy_top_k_starts_with_noise_alone() -> None:
    torch.manual_seed(0)
    router = NoisyTopKRouter(8, 4, 2)

    share = router(torch.randn(20_000, 8)).counts() / 20_000

    torch.testing.assert_close(share, torch.full((4,), 0.5), rtol=0, atol=0.02)


@pytest.mark.parametrize("renormalise", [True, False])
def test_sigmoid(renormalise: bool) -> None:
    router = random(lambda _: SigmoidRouter(8, 5, 2, scale=2.5, renormalise=renormalise)).double()
    expected: Rows = []
    for x in X.tolist():
        s = [1 / (1 + math.exp(-v)) for v in linear(router.linear.weight, x)]
        biased = [a + b for a, b in zip(s, router.selection_bias.tolist(), strict=True)]
        chosen = best(biased, 2)
        total = sum(s[e] for e in chosen) if renormalise else 1.0
        expected.append(place({e: 2.5 * s[e] / total for e in chosen}, 5))

    assert_dense(router(X), expected)


def test_sigmoid_in_groups() -> None:
    router = random(lambda _: SigmoidRouter(8, 12, 3, num_groups=4, groups_kept=2)).double()
    expected: Rows = []
    for x in X.tolist():
        s = [1 / (1 + math.exp(-v)) for v in linear(router.linear.weight, x)]
        biased = [a + b for a, b in zip(s, router.selection_bias.tolist(), strict=True)]
        groups = best([sum(sorted(biased[3 * g : 3 * g + 3])[1:]) for g in range(4)], 2)
        allowed = [v if e // 3 in groups else -math.inf for e, v in enumerate(biased)]
        chosen = best(allowed, 3)
        total = sum(s[e] for e in chosen)
        expected.append(place({e: s[e] / total for e in chosen}, 12))

    assert_dense(router(X), expected)


@pytest.mark.parametrize("p", [0.05, 0.4, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("max_experts", [2, 3, 6])
def test_top_p(p: float, max_experts: int) -> None:
    router = random(lambda _: TopPRouter(8, 6, p, max_experts=max_experts)).double()
    expected, sizes = [], []
    for x in X.tolist():
        probs = softmax(linear(router.linear.weight, x))
        order, chosen = best(probs, 6), []
        while len(chosen) < max_experts and sum(probs[e] for e in chosen) < p:
            chosen.append(order[len(chosen)])
        total = sum(probs[e] for e in chosen)
        expected.append(place({e: probs[e] / total for e in chosen}, 6))
        sizes.append(len(chosen))

    routing = router(X)

    assert_dense(routing, expected)
    assert routing.kept.sum(1).tolist() == sizes


def test_top_p_spends_more_experts_on_undecided_rows() -> None:
    router = TopPRouter(2, 4, 0.6, max_experts=4)
    with torch.no_grad():
        router.linear.weight.copy_(torch.tensor([[5.0, 0], [-5, 0], [0, 5], [0, -5]]))

    routing = router(torch.tensor([[1.0, 0.1], [0, 0]]))

    assert routing.kept.sum(1).tolist() == [1, 3]


def test_entropy_is_that_of_the_probabilities() -> None:
    routing, mask = TopPRouter(8, 6, 0.5, max_experts=2).double()(X), torch.arange(29) < 20
    h = [-sum(v * math.log(v) for v in row) for row in routing.probs.tolist()]

    assert entropy(routing).item() == pytest.approx(sum(h) / 29, abs=1e-12)
    assert entropy(routing, mask).item() == pytest.approx(sum(h[:20]) / 20, abs=1e-12)
    assert entropy(routing, mask & False) == 0


def test_cosine() -> None:
    router = CosineRouter(8, 5, sphere_width=3, temperature=0.3, lowest_temperature=0.1).double()
    with torch.no_grad():
        router.log_temperature.fill_(math.log(0.2))  # it was rounded to float32
    expected: Rows = []
    for x in X.tolist():
        u = linear(router.projection.weight, x)
        cos = [
            sum(a * b for a, b in zip(u, v, strict=True)) / math.hypot(*u) / math.hypot(*v)
            for v in router.directions_ER.tolist()
        ]
        expected.append(softmax([value / 0.3 for value in cos]))

    assert_dense(router(X), expected)


def test_cosine_ignores_length_and_keeps_its_floor() -> None:
    router = CosineRouter(8, 5, sphere_width=3).double()

    torch.testing.assert_close(router(1000 * X).dense(), router(X).dense(), rtol=0, atol=1e-12)
    with torch.no_grad():
        router.log_temperature.fill_(-50)
    assert router(X).logits.abs().max() <= 100
    assert router(torch.zeros(1, 8)).dense().tolist() == [[pytest.approx(0.2)] * 5]


@pytest.mark.parametrize(("groups", "experts"), [(None, None), (2, None), (None, 2), (3, 2)])
@pytest.mark.parametrize("renormalise", [True, False])
def test_hierarchical(groups: int | None, experts: int | None, renormalise: bool) -> None:
    router = HierarchicalRouter(
        8, 12, 4, groups_kept=groups, experts_kept=experts, renormalise=renormalise
    ).double()
    expected: Rows = []
    for x in X.tolist():
        outer = softmax(linear(router.outer.weight, x, router.outer.bias))
        inner = linear(router.inner.weight, x, router.inner.bias)
        weights: dict[int, float] = {}
        chosen = best(outer, groups or 4)
        for g in chosen:
            within = softmax(inner[3 * g : 3 * g + 3])
            kept = best(within, experts or 3)
            of_group = outer[g] / (sum(outer[c] for c in chosen) if renormalise else 1)
            share = sum(within[e] for e in kept) if renormalise else 1
            weights |= {3 * g + e: of_group * within[e] / share for e in kept}
        expected.append(place(weights, 12))

    assert_dense(router(X), expected)


def test_hierarchical_passes_by_a_group_that_is_out_of_sight() -> None:
    visible = [True] * 4 + [False, False]
    router = HierarchicalRouter(8, 6, 3, groups_kept=2, experts_kept=2, visible=visible)

    routing = router(X.float())
    routing.weights.square().sum().backward()

    torch.testing.assert_close(routing.weights.sum(1), torch.ones(29))
    assert not routing.dense()[:, 4:].any()
    assert not routing.probs[:, 4:].any()
    assert (routing.logits[:, 4:] == -torch.inf).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in router.parameters())


@pytest.mark.parametrize("size", [2, 5, 6, 8])
@pytest.mark.parametrize("gamma", [0.5, 1.0])
@pytest.mark.parametrize("visible", [None, "some"])
def test_dselect_k(size: int, gamma: float, visible: str | None) -> None:
    shown = None if visible is None else [*VISIBLE, True, False][:size]
    router = random(lambda v: DSelectKRouter(8, size, 2, gamma=gamma, visible=v), visible=shown)
    router, bits = router.double(), math.ceil(math.log2(size))
    training: Rows = []
    evaluation: Rows = []
    for x in X.tolist():
        z = linear(router.bits.weight, x, router.bits.bias)
        alpha = softmax(linear(router.alpha.weight, x, router.alpha.bias))
        g = [0.0] * size
        for e in range(size):
            for j in range(2):
                q = alpha[j] * (shown is None or shown[e])
                for b, bit in enumerate(f"{e:0{bits}b}"):
                    t = z[j * bits + b]
                    s = -2 * t**3 / gamma**3 + 3 * t / (2 * gamma) + 0.5
                    s = 0 if t <= -gamma / 2 else 1 if t >= gamma / 2 else s
                    q *= s if bit == "1" else 1 - s
                g[e] += q
        training.append(g)
        seen = [True] * size if shown is None else shown
        even = [1 / sum(seen) if v else 0.0 for v in seen]
        evaluation.append([v / sum(g) for v in g] if sum(g) > 0 else even)

    assert_dense(router.train()(X), training)
    assert_dense(router.eval()(X), evaluation)
