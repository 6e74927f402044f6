"""Every kind of router, built small, for the laws that all of them keep."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from recsys_moe.moe.router_cosine import CosineRouter
from recsys_moe.moe.router_dselect_k import DSelectKRouter
from recsys_moe.moe.router_expert_choice import ExpertChoiceRouter
from recsys_moe.moe.router_hierarchical import HierarchicalRouter
from recsys_moe.moe.router_sigmoid import SigmoidRouter
from recsys_moe.moe.router_soft_moe import SoftMoERouter
from recsys_moe.moe.router_softmax import SoftmaxRouter
from recsys_moe.moe.router_top_k import NoisyTopKRouter, TopKRouter
from recsys_moe.moe.router_top_p import TopPRouter
from recsys_moe.moe.router_union_budget import UnionBudgetRouter
from recsys_moe.moe.routing import Routing

WIDTH, EXPERTS = 8, 6
VISIBLE = [True, False, True, True, False, True]
Make = Callable[[list[bool] | None], nn.Module]

ROW_BY_ROW: dict[str, Make] = {
    "softmax": lambda v: SoftmaxRouter(WIDTH, EXPERTS, temperature=0.7, visible=v),
    "mixtral": lambda v: TopKRouter(WIDTH, EXPERTS, 2, visible=v),
    "switch": lambda v: TopKRouter(WIDTH, EXPERTS, 1, renormalise=False, bias=True, visible=v),
    "noisy": lambda v: NoisyTopKRouter(WIDTH, EXPERTS, 2, visible=v),
    "sigmoid": lambda v: SigmoidRouter(WIDTH, EXPERTS, 3, scale=2.5, visible=v),
    "sigmoid as it is": lambda v: SigmoidRouter(WIDTH, EXPERTS, 1, renormalise=False, visible=v),
    "top-p": lambda v: TopPRouter(WIDTH, EXPERTS, 0.6, max_experts=4, visible=v),
    "cosine": lambda v: CosineRouter(WIDTH, EXPERTS, sphere_width=4, visible=v),
    "cosine top-k": lambda v: CosineRouter(WIDTH, EXPERTS, sphere_width=4, k=2, visible=v),
    "hierarchical": lambda v: HierarchicalRouter(WIDTH, EXPERTS, 3, visible=v),
    "hierarchical sparse": lambda v: HierarchicalRouter(
        WIDTH, EXPERTS, 3, groups_kept=2, experts_kept=1, renormalise=False, visible=v
    ),
    "dselect-k": lambda v: DSelectKRouter(WIDTH, EXPERTS, 2, visible=v),
    "sigmoid in groups": lambda _: SigmoidRouter(WIDTH, EXPERTS, 3, num_groups=3, groups_kept=2),
    "union budget": lambda _: Union(),
}
STATIC: dict[str, Make] = {
    "dselect-k of a task": lambda v: DSelectKRouter(WIDTH, EXPERTS, 2, per_row=False, visible=v),
}
HIDING = [name for name in ROW_BY_ROW if name not in ("sigmoid in groups", "union budget")]
BATCHWISE: dict[str, Make] = {
    "expert choice": lambda v: ExpertChoiceRouter(WIDTH, EXPERTS, capacity_factor=1.5, visible=v),
    "soft moe": lambda v: SoftMoERouter(WIDTH, EXPERTS, slots_per_expert=2),
}


class Union(nn.Module):
    """The tasks of a union-budget router as one routing, for laws on a single routing."""

    def __init__(self) -> None:
        super().__init__()
        self.router = UnionBudgetRouter(WIDTH, EXPERTS, 2, shared=1, private=1)

    def forward(self, x_ND: Tensor, mask_N: Tensor | None = None) -> Routing:
        return self.router.union(self.router(x_ND, mask_N))


def random(make: Make, *, visible: list[bool] | None = None, seed: int = 0) -> nn.Module:
    """Return a router with random parameters, also where it would start at zero."""
    torch.manual_seed(seed)
    router = make(visible)
    with torch.no_grad():
        for name, parameter in router.named_parameters():
            if "temperature" not in name:
                parameter.normal_(std=0.4)
        if isinstance(router, SigmoidRouter):
            router.selection_bias.normal_(std=0.2)
    return router


def rows(count: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=dtype)
