"""MMoE and PLE against torch-rechub with its weights, and against float64 loops row by row."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recsys_moe import models
from recsys_moe.moe.banks import MLPBank
from recsys_moe.moe.router_base import Router
from recsys_moe.moe.router_softmax import SoftmaxRouter
from recsys_moe.moe.router_top_k import TopKRouter
from recsys_moe.spec import Categorical, Column, FeatureSpec, Numeric, Table, Task

TASKS, DIM, CODES, WIDTHS, TOWER = ("a.click", "like", "share"), 4, (7, 11), (6, 5), 3
SPEC = FeatureSpec(
    dataset="toy",
    columns=(
        Column(name="u", type="string"),
        Column(name="i", type="string"),
        Column(name="x", type="float32"),
    ),
    tables=tuple(
        Table(name=name, num_codes=size, num_oov=1)
        for name, size in zip("ui", CODES, strict=True)
    ),
    features=(
        Categorical(name="u", column="u", table="u"),
        Categorical(name="i", column="i", table="i"),
        Numeric(
            name="x", column="x", transform="identity", center=0, scale=1, clip=8,
            missing_flag=False,
        ),
    ),
    tasks=tuple(Task(name=task, label=task) for task in TASKS),
    train_rows=1,
)  # fmt: skip
COMMON: dict[str, Any] = {
    "embedding_dim": DIM,
    "widths": list(WIDTHS),
    "tower_widths": [TOWER],
    "dropout": 0.0,
    "embedding_dropout": 0.0,
}


def rows(count: int) -> tuple[Tensor, Tensor]:
    codes = [torch.randint(size, (count, 1), dtype=torch.int32) for size in CODES]
    return torch.cat(codes, dim=1), torch.randn(count, 1)


def theirs(published: type[nn.Module], **sizes: Any) -> nn.Module:
    """A published model in evaluation mode, its batch norms with statistics as after training."""
    features = pytest.importorskip("torch_rechub.basic.features")
    torch.manual_seed(0)
    model = published(
        [
            *(features.SparseFeature(n, s, DIM) for n, s in zip("ui", CODES, strict=True)),
            features.DenseFeature("x"),
        ],
        ["classification"] * len(TASKS),
        expert_params={"dims": list(WIDTHS)},
        tower_params_list=[{"dims": [TOWER]}] * len(TASKS),
        **sizes,
    )
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        if isinstance(module, nn.BatchNorm1d):
            for vector, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2),
                (module.weight, 2, 4),
                (module.bias, 0, 1),
            ):
                nn.init.uniform_(vector, low, high)
    return model.eval()


@torch.no_grad()
def folded(mlp: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The weights and biases of an `MLP`, each batch norm folded into the layer before it."""
    found: list[tuple[Tensor, Tensor]] = []
    for layer in mlp.mlp:
        if isinstance(layer, nn.Linear):
            found.append((layer.weight, layer.bias))
        elif isinstance(layer, nn.BatchNorm1d):
            weight, bias = found.pop()
            scale = layer.weight / (layer.running_var + layer.eps).sqrt()
            shift = layer.bias - layer.running_mean * scale
            found.append((weight * scale.unsqueeze(1), bias * scale + shift))
    return found


@torch.no_grad()
def copy_bank(bank: MLPBank, experts: list[nn.Module]) -> None:
    for e, expert in enumerate(experts):
        for layer, (weight, bias) in enumerate(folded(expert)):
            bank.weights_EOI[layer][e] = weight
            bank.biases_EO[layer][e] = bias


@torch.no_grad()
def copy_linear(ours: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    ours.weight.copy_(weight)
    ours.bias.copy_(bias)


def copy_gate(router: Router, gate: nn.Module) -> None:
    copy_linear(router.linear, *folded(gate)[0])


def copy_ends(ours: nn.Module, published: nn.Module) -> None:
    tables = [published.embedding.embed_dict[name].weight for name in "ui"]
    ours.embeddings.weight_Vd.data.copy_(torch.cat(tables).detach())
    for tower, other in zip(ours.towers, published.towers, strict=True):
        for layer, pair in zip([*tower.hidden, tower.logit], folded(other), strict=True):
            copy_linear(layer, *pair)


def assert_same(ours: nn.Module, published: nn.Module) -> None:
    codes, numbers = rows(200)
    expected = published({"u": codes[:, 0], "i": codes[:, 1], "x": numbers[:, 0]})
    logits = ours.eval()(codes, numbers)

    found = torch.stack([logits[task].sigmoid() for task in TASKS], dim=1)
    assert expected.std(0).min() > 1e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_mmoe_is_that_of_torch_rechub() -> None:
    package = pytest.importorskip("torch_rechub.models.multi_task")
    published = theirs(package.MMOE, n_expert=4)
    ours = models.mmoe(SPEC, **COMMON, num_experts=4)
    copy_ends(ours, published)
    copy_bank(ours.mixture.bank, list(published.experts))
    for router, gate in zip(ours.mixture.gates, published.gates, strict=True):
        copy_gate(router, gate)

    assert_same(ours, published)


@pytest.mark.parametrize("levels", [1, 3])
def test_ple_is_that_of_torch_rechub(levels: int) -> None:
    package = pytest.importorskip("torch_rechub.models.multi_task")
    published = theirs(package.PLE, n_level=levels, n_expert_specific=2, n_expert_shared=3)
    ours = models.ple(SPEC, **COMMON, num_levels=levels, num_task_experts=2, num_shared_experts=3)
    copy_ends(ours, published)
    for level, other in zip(ours.mixture.levels, published.cgc_layers, strict=True):
        for t, bank in enumerate(level.task_banks):
            copy_bank(bank, list(other.experts_specific[2 * t : 2 * t + 2]))
        copy_bank(level.shared_bank, list(other.experts_shared))
        for router, gate in zip(level.task_gates, other.gates_specific, strict=True):
            copy_gate(router, gate)
        if level.shared_gate is not None:
            copy_gate(level.shared_gate, other.gate_shared)

    assert_same(ours, published)


def expert(bank: MLPBank, e: int, x: Tensor) -> Tensor:
    for weight_EOI, bias_EO in zip(bank.weights_EOI, bank.biases_EO, strict=True):
        x = (weight_EOI[e] @ x + bias_EO[e]).clamp(min=0)
    return x


def gated(router: Router, outs: list[Tensor], x: Tensor) -> Tensor:
    """One row's mixture, expert by expert: a softmax over all, or over the k largest logits."""
    logits = router.linear.weight @ x
    logits = logits if router.linear.bias is None else logits + router.linear.bias
    chosen = sorted(range(len(outs)), key=lambda e: (-logits[e].item(), e))
    chosen = chosen[: getattr(router, "k", None) or len(outs)]
    total = sum(logits[e].exp() for e in chosen)
    return sum((logits[e].exp() / total * outs[e] for e in chosen), torch.zeros(()))


def mmoe_row(mixture: nn.Module, x: Tensor) -> list[Tensor]:
    outs = [expert(mixture.bank, e, x) for e in range(mixture.bank.num_experts)]
    return [gated(router, outs, x) for router in mixture.gates]


def ple_row(mixture: nn.Module, x: Tensor) -> list[Tensor]:
    own, shared = [x] * len(TASKS), x
    for level in mixture.levels:
        outs = [
            [expert(bank, e, x) for e in range(bank.num_experts)]
            for bank, x in zip(level.task_banks, own, strict=True)
        ]
        common = [expert(level.shared_bank, e, shared) for e in range(3)]
        own = [
            gated(gate, [*mine, *common], x)
            for gate, mine, x in zip(level.task_gates, outs, own, strict=True)
        ]
        if level.shared_gate is not None:
            everything = [*(out for mine in outs for out in mine), *common]
            shared = gated(level.shared_gate, everything, shared)
    return own


LEVELS = {"num_levels": 3, "num_task_experts": 2, "num_shared_experts": 3}
LOOPS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any], Callable[..., list[Tensor]]]] = {
    "mmoe": (models.mmoe, {"num_experts": 6}, mmoe_row),
    "ple": (models.ple, LEVELS, ple_row),
}
ROUTERS = {"softmax": SoftmaxRouter, "top 2": partial(TopKRouter, k=2)}


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("how", ["auto", "dense", "split", "where"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_mixture_and_its_gradients_are_those_of_a_loop(name: str, how: str, router: str) -> None:
    if (router, how) == ("softmax", "split"):
        pytest.skip("dense gates have the dense form alone")
    build, sizes, loop = LOOPS[name]
    torch.manual_seed(0)
    mixture = build(SPEC, **COMMON, **sizes, router=ROUTERS[router]).mixture.double()
    mixture.dispatch = how
    x = torch.randn(7, 2 * DIM + 1, dtype=torch.float64, requires_grad=True)

    def by_loop(x_BD: Tensor) -> list[Tensor]:
        by_row = [loop(mixture, x_D) for x_D in x_BD]
        return [torch.stack(outs) for outs in zip(*by_row, strict=True)]

    found = []
    for forward in (mixture, by_loop):
        mixture.zero_grad()
        x.grad = None
        outs = forward(x)
        torch.stack([(t + 1) * out.square().sum() for t, out in enumerate(outs)]).sum().backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in mixture.parameters()]
        found.append([*outs, x.grad, *(grad.clone() for grad in grads)])

    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
