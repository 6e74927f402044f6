"""Settings that cannot work are refused, in words."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from recsys_moe.errors import RequestError
from recsys_moe.moe.router_cosine import CosineRouter
from recsys_moe.moe.router_dselect_k import DSelectKRouter, selector_entropy
from recsys_moe.moe.router_expert_choice import ExpertChoiceRouter
from recsys_moe.moe.router_hierarchical import HierarchicalRouter
from recsys_moe.moe.router_sigmoid import SigmoidRouter
from recsys_moe.moe.router_soft_moe import SoftMoERouter
from recsys_moe.moe.router_softmax import SoftmaxRouter
from recsys_moe.moe.router_top_k import NoisyTopKRouter, TopKRouter
from recsys_moe.moe.router_top_p import TopPRouter
from recsys_moe.moe.router_union_budget import UnionBudgetRouter

NO_GRADIENT: list[Callable[[], nn.Module]] = [
    lambda: TopKRouter(8, 4, 1),
    lambda: NoisyTopKRouter(8, 4, 1),
    lambda: SigmoidRouter(8, 4, 1),
    lambda: TopPRouter(8, 4, 0.5, max_experts=1),
    lambda: CosineRouter(8, 4, sphere_width=2, k=1),
    lambda: HierarchicalRouter(8, 4, 2, groups_kept=1),
    lambda: HierarchicalRouter(8, 4, 2, experts_kept=1),
    lambda: UnionBudgetRouter(8, 4, 2, shared=0, private=1),
]


@pytest.mark.parametrize("make", NO_GRADIENT)
def test_one_renormalised_weight_is_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(RequestError, match="gradient"):
        make()


def test_one_weight_as_it_is_teaches_the_router() -> None:
    router = TopKRouter(8, 4, 1, renormalise=False)

    router(torch.randn(16, 8)).weights.sum().backward()

    assert router.linear.weight.grad is not None
    assert router.linear.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: SoftmaxRouter(0, 4), "router"),
        (lambda: SoftmaxRouter(8, 0), "router"),
        (lambda: SoftmaxRouter(8, 4, temperature=0), "temperature"),
        (lambda: SoftmaxRouter(8, 4, temperature=float("nan")), "temperature"),
        (lambda: SoftmaxRouter(8, 4, visible=[True] * 3), "visible"),
        (lambda: SoftmaxRouter(8, 4, visible=[False] * 4), "visible"),
        (lambda: TopKRouter(8, 4, 0), "k"),
        (lambda: TopKRouter(8, 4, 5), "k"),
        (lambda: TopKRouter(8, 4, 2.5), "k"),  # type: ignore[arg-type]
        (lambda: TopKRouter(8, 4, "2"), "k"),  # type: ignore[arg-type]
        (lambda: TopKRouter(8, 4, 3, visible=[True, True, False, False]), "k"),
        (lambda: SigmoidRouter(8, 4, 2, scale=0), "scale"),
        (lambda: SigmoidRouter(8, 4, 2, num_groups=3), "num_groups"),
        (lambda: SigmoidRouter(8, 4, 2, num_groups=2, visible=[True] * 4), "num_groups"),
        (lambda: SigmoidRouter(8, 4, 3, num_groups=2, groups_kept=1), "groups_kept"),
        (lambda: SigmoidRouter(8, 4, 2, num_groups=2, groups_kept=3), "groups_kept"),
        (lambda: TopPRouter(8, 4, 0.0, max_experts=2), "p"),
        (lambda: TopPRouter(8, 4, 1.1, max_experts=2), "p"),
        (lambda: TopPRouter(8, 4, 0.5, max_experts=5), "max_experts"),
        (lambda: CosineRouter(8, 4, sphere_width=0), "sphere_width"),
        (lambda: CosineRouter(8, 4, sphere_width=2, temperature=0.01), "temperature"),
        (lambda: HierarchicalRouter(8, 4, 3), "num_groups"),
        (lambda: HierarchicalRouter(8, 4, 2, groups_kept=3), "groups_kept"),
        (lambda: HierarchicalRouter(8, 4, 2, experts_kept=3), "experts_kept"),
        (lambda: HierarchicalRouter(8, 4, 2, experts_kept=1.5), "experts_kept"),  # type: ignore[arg-type]
        (lambda: DSelectKRouter(8, 1, 1), "num_experts"),
        (lambda: DSelectKRouter(8, 4, 0), "k"),
        (lambda: DSelectKRouter(8, 4, 2, gamma=0), "gamma"),
        (lambda: ExpertChoiceRouter(8, 4, capacity_factor=0), "capacity_factor"),
        (lambda: ExpertChoiceRouter(8, 4, capacity_factor=5), "capacity_factor"),
        (lambda: SoftMoERouter(8, 4, slots_per_expert=0), "slots_per_expert"),
        (lambda: UnionBudgetRouter(8, 4, 0, shared=1, private=1), "num_tasks"),
        (lambda: UnionBudgetRouter(8, 4, 2, shared=-1, private=3), "budget"),
        (lambda: UnionBudgetRouter(8, 4, 2, shared=3, private=2), "shared + private"),
        (lambda: UnionBudgetRouter(8, 4, 2, shared=1, private=1, task_weights=[1]), "task_weights"),
        (
            lambda: UnionBudgetRouter(8, 4, 2, shared=1, private=1, task_weights=[0, 0]),
            "task_weights",
        ),
        (lambda: selector_entropy(SoftmaxRouter(8, 4)(torch.zeros(1, 8))), "routing"),
    ],
)
def test_a_wrong_setting_is_named(make: Callable[[], object], what: str) -> None:
    with pytest.raises(RequestError) as error:
        make()

    assert error.value.what == what
