"""Accounts of every wiring: what autograd reaches, and what a cut graph multiplies."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from recsys_moe import expert_kinds, models
from recsys_moe.moe.accounts import account, accounts
from recsys_moe.moe.banks import LinearBank
from recsys_moe.moe.banks_hetero import HeteroBank
from recsys_moe.moe.block import MoEBlock
from recsys_moe.moe.router_cosine import CosineRouter
from recsys_moe.moe.router_dselect_k import DSelectKRouter
from recsys_moe.moe.router_sigmoid import SigmoidRouter
from recsys_moe.moe.router_top_k import NoisyTopKRouter, TopKRouter
from recsys_moe.moe.router_union_budget import UnionBudgetRouter
from tests.moe.test_accounts import SIZES, SLOTS, SPEC, TASKS

GROUPS = {"user": {"features": ["a", "x"], "num_experts": 2}, "items": {"features": ["l"]}}
MIXED = partial(
    expert_kinds.mixed,
    kinds={kind: getattr(expert_kinds, kind) for kind in ("mlp", "swiglu", "linear", "cross")},
)
COMMON = SIZES | {"widths": [5, 4]}
TOP_2 = partial(TopKRouter, k=2)
PLE_SIZES = COMMON | {"num_task_experts": 2, "num_shared_experts": 3}
Build = Callable[[], nn.Module]
WIRINGS: dict[str, Build] = {
    "single task": lambda: models.single_task(SPEC, **COMMON),
    "shared bottom": lambda: models.shared_bottom(SPEC, **COMMON, experts=MIXED),
    "mmoe": lambda: models.mmoe(SPEC, **COMMON, num_experts=3),
    "sparse mmoe": lambda: models.mmoe(SPEC, **COMMON, num_experts=8, router=TOP_2),
    "mixed mmoe": lambda: models.mmoe(
        SPEC, **COMMON, num_experts=6, router=partial(SigmoidRouter, k=2), experts=MIXED
    ),
    "mmoe with groups": lambda: models.mmoe(
        SPEC, **COMMON, num_experts=3, router=TOP_2, group_experts=GROUPS
    ),
    "noisy mmoe": lambda: models.mmoe(
        SPEC, **COMMON, num_experts=4, router=partial(NoisyTopKRouter, k=2)
    ),
    "union budget": lambda: models.mmoe(
        SPEC, **COMMON, num_experts=8, router=partial(UnionBudgetRouter, shared=1, private=2)
    ),
    "task-only dselect-k": lambda: models.mmoe(
        SPEC, **COMMON, num_experts=4, router=partial(DSelectKRouter, k=2, per_row=False)
    ),
    "block": lambda: models.moe(
        SPEC, **COMMON, num_experts=8, num_shared_experts=2, router=TOP_2, group_experts=GROUPS
    ),
    "cgc": lambda: models.ple(SPEC, **PLE_SIZES, num_levels=1),
    "three levels": lambda: models.ple(SPEC, **PLE_SIZES, num_levels=3),
    "sparse levels": lambda: models.ple(
        SPEC,
        **PLE_SIZES,
        num_levels=2,
        router=partial(CosineRouter, sphere_width=3, k=2),
        experts=partial(expert_kinds.cross, rank=2),
        group_experts=GROUPS,
    ),
}
SOME = [("click",), ("click", "amount"), TASKS]


def densely(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if hasattr(module, "dispatch"):
            module.dispatch = "dense"
    return model


class Only(nn.Module):
    """A model that answers for some tasks alone."""

    def __init__(self, model: nn.Module, tasks: Sequence[str]) -> None:
        super().__init__()
        self.model, self.tasks = model, tasks

    def forward(self, codes: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
        logits = self.model(codes, numbers)
        return tuple(logits[task] for task in self.tasks)


def inputs(rows: int) -> tuple[Tensor, Tensor]:
    return torch.ones(rows, SLOTS, dtype=torch.int32), torch.randn(rows, 1)


@pytest.mark.parametrize("tasks", SOME, ids="+".join)
@pytest.mark.parametrize("name", WIRINGS)
def test_parameters_are_those_that_get_a_gradient(name: str, tasks: tuple[str, ...]) -> None:
    model = densely(WIRINGS[name]())
    torch.stack(Only(model, tasks)(*inputs(5))).sum().backward()
    reached = sum(p.numel() for p in model.parameters() if p.grad is not None)

    found = account(model, tasks)

    assert found.parameters == reached
    if tasks == TASKS:
        assert found.parameters == models.num_parameters(model)


@pytest.mark.parametrize("name", WIRINGS)
def test_dense_flops_are_those_of_the_forward_pass(name: str) -> None:
    rows, model = 7, densely(WIRINGS[name]()).eval()
    with FlopCounterMode(display=False) as counter:
        model(*inputs(rows))

    assert account(model).dense_flops_per_row * rows == counter.get_total_flops()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("sparse mmoe", ("click", "amount")),
        ("union budget", ("click",)),
        ("three levels", ("click",)),
    ],
)
def test_dense_flops_are_those_of_the_graph_cut_to_its_outputs(
    name: str, tasks: tuple[str, ...]
) -> None:
    rows = 7
    model = Only(densely(WIRINGS[name]()), tasks).eval()
    graph = torch.export.export(model, inputs(rows)).run_decompositions({}).module()
    graph.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    graph.recompile()
    with FlopCounterMode(display=False) as counter:
        graph(*inputs(rows))

    assert account(model.model, tasks).dense_flops_per_row * rows == counter.get_total_flops()


@pytest.mark.parametrize("tasks", SOME, ids="+".join)
@pytest.mark.parametrize(("k", "size"), [(1, 8), (2, 8), (2, 3), (3, 3)])
def test_a_sparse_mmoe_uses_the_experts_that_its_tasks_asked_for(
    tasks: tuple[str, ...], k: int, size: int
) -> None:
    router = partial(TopKRouter, k=k, renormalise=False)
    model = models.mmoe(SPEC, **COMMON, num_experts=size, router=router)
    expert, flops = 7 * 5 + 5 + 5 * 4 + 4, 2 * (7 * 5 + 5 * 4)
    most = min(size, k * len(tasks))

    found = account(model, tasks)

    idle = size - most
    assert found.active_network_parameters == found.network_parameters - idle * expert
    unmixed = len(tasks) * (size - k) * 2 * 4
    assert found.flops_per_row == found.dense_flops_per_row - idle * flops - unmixed


@pytest.mark.parametrize("tasks", SOME, ids="+".join)
def test_tasks_on_one_budget_use_the_joint_experts_once(tasks: tuple[str, ...]) -> None:
    model = WIRINGS["union budget"]()
    expert = 7 * 5 + 5 + 5 * 4 + 4

    found = account(model, tasks)

    most = model.mixture.gates.slots_of(len(tasks))
    assert most == min(8, 1 + 2 * len(tasks))
    assert found.active_network_parameters == found.network_parameters - (8 - most) * expert


@pytest.mark.parametrize("tasks", SOME, ids="+".join)
def test_one_gate_for_all_tasks_has_one_budget(tasks: tuple[str, ...]) -> None:
    router = partial(UnionBudgetRouter, shared=1, private=2)
    model = models.moe(SPEC, **COMMON, num_experts=8, num_shared_experts=1, router=router)
    expert = 7 * 5 + 5 + 5 * 4 + 4

    found = account(model, tasks)

    assert found.active_network_parameters == found.network_parameters - (8 - 3) * expert


def test_the_dearest_experts_are_counted_as_active() -> None:
    """Six experts of the mixed kinds, of which each of three tasks uses one: the three dearest."""
    router = partial(TopKRouter, k=1, renormalise=False)
    model = models.mmoe(SPEC, **COMMON, num_experts=6, router=router, experts=MIXED)
    bank = model.mixture.bank
    each = [p for part in bank.banks for p in [part.weights_per_expert] * part.num_experts]

    found = account(model)

    assert found.network_parameters - found.active_network_parameters == sum(sorted(each)[:3])


class Trees(nn.Module):
    """What a frozen bank says of itself: no parameters, and FLOPs or None."""

    num_experts, input_width, output_width = 1, 4, 1

    def __init__(self, flops_per_row: int | None) -> None:
        super().__init__()
        self.flops_per_row = flops_per_row

    def forward(self, x_ND: Tensor) -> Tensor:
        raise AssertionError("an account computes nothing")


@pytest.mark.parametrize("flops", [None, 0, 40])
def test_a_frozen_expert_says_its_own_numbers(flops: int | None) -> None:
    bank = HeteroBank([LinearBank(2, 4, 3, bias=False), Trees(flops)])
    bank.projections[1] = nn.Linear(1, 3)

    (found,) = accounts(MoEBlock(TopKRouter(4, 3, 2), bank))

    assert found.network_parameters == 4 * 3 + 2 * 4 * 3 + (3 + 3)
    assert found.uncounted == (("bank.banks.1.0",) if flops is None else ())
    products = 2 * (4 * 3 + 2 * 4 * 3) + 2 * 3 * 3
    assert found.dense_flops_per_row == products + (2 * 3 + (flops or 0))
