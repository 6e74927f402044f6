r"""Many tasks on one budget: experts chosen by all tasks together, and a few for each alone.

Shapes: N rows, D input width, T tasks, E experts, K slots of a task, U slots of all tasks.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recsys_moe.errors import RequestError
from recsys_moe.moe.router_base import (
    Router,
    check_k,
    device_kind,
    first_largest,
    full_linear,
    wide,
)
from recsys_moe.moe.routing import Routing


class UnionBudgetRouter(Router):
    r"""Route T tasks so that a row uses at most shared + T * private experts.

    With :math:`p_t = \operatorname{softmax}(l_t)` and task weights a that sum to one,

    .. math:: \mathcal S = \operatorname{TopK}\left(\textstyle\sum_t a_t p_t, K_s\right), \quad
        \mathcal A_t = \operatorname{TopK}(l_{te} : e \notin \mathcal S, K_a), \quad
        w_t = \operatorname{softmax}(l_t \text{ over } \mathcal S \cup \mathcal A_t)

    SMES (Zhang et al., 2026, arXiv 2602.09386, progressive expert routing). Independent choices of
    T tasks would activate up to T * K. Its one balance term over all tasks is the Switch loss of
    `stacked`; the experts that a row activates are those of `union`.

    Attributes:
        slots: The most experts that a row uses for all tasks, U.
    """

    fixed_because = "it decides for all tasks at once, out of one budget"
    balance: Mapping[str, float] = {"switch": 0.01}

    def __init__(
        self,
        width: int,
        num_experts: int,
        num_tasks: int,
        *,
        shared: int,
        private: int,
        task_weights: Sequence[float] | None = None,
        bias: bool = False,
        visible: Sequence[bool] | None = None,
    ) -> None:
        """Initialise each task's gate as `nn.Linear` does.

        Args:
            width: Width of a row, D.
            num_experts: Experts in all, E.
            num_tasks: Tasks, T.
            shared: Experts of a row that the tasks choose together.
            private: Experts of a row that each task adds for itself.
            task_weights: A task's say in the joint choice, not below 0; None for even ones.
            bias: Whether the logits have one.
            visible: Which experts the router may choose, one bool an expert; None for all.

        Raises:
            RequestError: No task, budgets below 0 or beyond the visible experts, one expert in all
                (its weight would be 1 and its gate without a gradient), or wrong task weights.
        """
        super().__init__(width, num_experts, visible=visible)
        if num_tasks < 1:
            raise RequestError("num_tasks", wanted="at least 1", got=f"{num_tasks}")
        if shared < 0 or private < 0:
            raise RequestError("budget", wanted="0 or more", got=f"{shared} and {private}")
        check_k(shared + private, self.num_visible, renormalise=True, name="shared + private")
        weights = [1.0] * num_tasks if task_weights is None else list(task_weights)
        if len(weights) != num_tasks or min(weights) < 0 or not sum(weights) > 0:
            raise RequestError(
                "task_weights",
                wanted=f"{num_tasks} numbers of 0 or more, one above 0",
                got=f"{weights}",
            )
        self.num_tasks, self.shared, self.private = num_tasks, shared, private
        self.slots = self.slots_of(num_tasks)
        self.task_weights = tuple(weight / sum(weights) for weight in weights)
        self.linear = nn.Linear(width, num_tasks * num_experts, bias=bias)

    def forward(  # type: ignore[override]
        self, x_ND: Tensor, mask_N: Tensor | None = None
    ) -> tuple[Routing, ...]:
        """Return one sparse routing per task, (N, K): the shared experts, then the private ones."""
        with torch.autocast(device_kind(x_ND), enabled=False):
            logits = full_linear(self.linear, wide(x_ND))
            l_NTE = self.hide(torch.unflatten(logits, -1, (self.num_tasks, -1)))
            p_NTE = l_NTE.softmax(-1)
            routings = tuple(
                Routing(
                    weights=l_NE.gather(-1, index_NK).softmax(-1),
                    index=index_NK,
                    probs=p_NE,
                    logits=l_NE,
                )
                for l_NE, p_NE, index_NK in zip(
                    l_NTE.unbind(1), p_NTE.unbind(1), self._choose(l_NTE, p_NTE), strict=True
                )
            )
            return routings if mask_N is None else tuple(r.masked(mask_N) for r in routings)

    def _choose(self, l_NTE: Tensor, p_NTE: Tensor) -> tuple[Tensor, ...]:
        """Return each task's experts, int64 (N, K)."""
        score_NE = sum(
            weight * p_NE for weight, p_NE in zip(self.task_weights, p_NTE.unbind(1), strict=True)
        )
        assert isinstance(score_NE, Tensor)  # there is a task
        if not self.shared:
            return first_largest(l_NTE, self.private).unbind(1)
        shared_NS = first_largest(self.hide(score_NE), self.shared)
        if not self.private:
            return (shared_NS,) * self.num_tasks
        taken_NTS = shared_NS.unsqueeze(1).expand(-1, self.num_tasks, -1)
        private_NTP = first_largest(l_NTE.detach().scatter(-1, taken_NTS, -torch.inf), self.private)
        return torch.cat((taken_NTS, private_NTP), dim=-1).unbind(1)

    def slots_of(self, num_tasks: int) -> int:
        """Return the most experts that a row uses for this many of the tasks."""
        return min(self.shared + num_tasks * self.private, self.num_visible)

    def union(self, routings: Sequence[Routing]) -> Routing:
        """Return the experts that any task uses, each once, weighted by the tasks' mean.

        Its U slots are what a row costs: `kept.sum(-1)` are its activated experts, and an expert
        that several tasks share is computed once.
        """
        dense_NE = torch.stack([routing.dense() for routing in routings]).mean(0)
        used_NE = torch.stack([routing.chosen() for routing in routings]).any(0)
        index_NU = first_largest(used_NE.to(dense_NE.dtype), self.slots)
        return Routing(
            weights=dense_NE.gather(-1, index_NU),
            index=index_NU,
            probs=torch.stack([routing.probs for routing in routings]).mean(0),
            logits=torch.stack([routing.logits for routing in routings]).mean(0),
            kept=used_NE.gather(-1, index_NU),
        )


def stacked(routings: Sequence[Routing]) -> Routing:
    """Return the tasks' routings as one of T * N rows, for statistics over all of them."""
    kept = [routing.kept for routing in routings]
    index = [routing.index for routing in routings]
    return Routing(
        weights=torch.cat([routing.weights for routing in routings]),
        index=torch.cat([i for i in index if i is not None]) if index[0] is not None else None,
        probs=torch.cat([routing.probs for routing in routings]),
        logits=torch.cat([routing.logits for routing in routings]),
        kept=torch.cat([k for k in kept if k is not None]) if kept[0] is not None else None,
    )
