r"""Two levels of gates: first a group of experts, then an expert of the group.

Shapes: N rows, D input width, E experts, G groups, S experts of a group, K slots of a row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys_moe.errors import RequestError
from recsys_moe.moe.router_base import Router, first_largest, full_linear
from recsys_moe.moe.routing import Routing


class HierarchicalRouter(Router):
    r"""Weigh an expert by its group's gate times its own within the group.

    .. math:: w_{(g, e)} = w_g \, w_{e \mid g}

    Shazeer et al., 2017, appendix B, equation 12. Expert e of group g has the number g S + e. Both
    gates are softmaxes, dense or over their k largest; `probs` are the products of the full ones
    and `logits` their logarithms. Where something is left out, the balance loss is the paper's
    importance.
    """

    fixed_because = "its experts stand in groups of one size"

    def __init__(
        self,
        width: int,
        num_experts: int,
        num_groups: int,
        *,
        groups_kept: int | None = None,
        experts_kept: int | None = None,
        renormalise: bool = True,
        bias: bool = True,
        visible: Sequence[bool] | None = None,
    ) -> None:
        """Initialise both gates as `nn.Linear` does.

        Args:
            width: Width of a row, D.
            num_experts: Experts in all, E, in groups of neighbours of one size.
            num_groups: Groups, G.
            groups_kept: Groups of a row; None for all.
            experts_kept: Experts of a row in each of its groups; None for all.
            renormalise: Whether the kept weights of either level sum to one.
            bias: Whether the logits have one.
            visible: Which experts the router may choose, one bool an expert; None for all.

        Raises:
            RequestError: Groups that do not divide the experts; more kept than there are to be
                seen; or one kept of several with `renormalise`, which leaves that gate no gradient.
        """
        super().__init__(width, num_experts, visible=visible)
        if num_groups < 1 or num_experts % num_groups:
            raise RequestError(
                "num_groups", wanted=f"a divisor of {num_experts} experts", got=f"{num_groups}"
            )
        size = num_experts // num_groups
        seen = [size] * num_groups
        if visible is not None:
            seen = [sum(map(bool, visible[g * size : (g + 1) * size])) for g in range(num_groups)]
        open_groups = [count for count in seen if count]
        _check_kept("groups_kept", groups_kept, len(open_groups), renormalise)
        _check_kept("experts_kept", experts_kept, min(open_groups), renormalise)
        self.num_groups, self.groups_kept = num_groups, groups_kept
        self.experts_kept, self.renormalise = experts_kept, renormalise
        if groups_kept is not None or experts_kept is not None:
            self.balance = {"importance": 0.1}
        self.outer = nn.Linear(width, num_groups, bias=bias)
        self.inner = nn.Linear(width, num_experts, bias=bias)

    def route(self, x_ND: Tensor) -> Routing:
        """Return a routing, dense (N, E) where nothing is left out, else (N, groups * experts)."""
        inner_NE = self.hide(full_linear(self.inner, x_ND))
        inner_NGS = torch.unflatten(inner_NE, -1, (self.num_groups, -1))
        outer_NG = full_linear(self.outer, x_ND)
        if self.visible is not None:
            shut_G1 = ~self.visible.view(self.num_groups, -1).any(-1, keepdim=True)
            outer_NG = outer_NG.masked_fill(shut_G1.squeeze(-1), -torch.inf)
            inner_NGS = inner_NGS.masked_fill(shut_G1, 0.0)  # a softmax over nothing is no number
        log_NG, log_NGS = outer_NG.log_softmax(-1), inner_NGS.log_softmax(-1)
        logits_NE = (log_NG.unsqueeze(-1) + log_NGS).flatten(-2)
        probs_NE = (log_NG.exp().unsqueeze(-1) * log_NGS.exp()).flatten(-2)
        if self.groups_kept is None and self.experts_kept is None:
            return Routing(weights=probs_NE, index=None, probs=probs_NE, logits=logits_NE)
        size = log_NGS.shape[-1]
        group_NA = first_largest(log_NG, self.groups_kept or self.num_groups)
        rows_NAS = group_NA.unsqueeze(-1).expand(-1, -1, size)
        of_group_NAS = log_NGS.gather(1, rows_NAS)
        expert_NAB = first_largest(of_group_NAS, self.experts_kept or size)
        log_w_NA, log_w_NAB = log_NG.gather(-1, group_NA), of_group_NAS.gather(-1, expert_NAB)
        if self.renormalise:
            w_NA, w_NAB = log_w_NA.softmax(-1), log_w_NAB.softmax(-1)
        else:
            w_NA, w_NAB = log_w_NA.exp(), log_w_NAB.exp()
        return Routing(
            weights=(w_NA.unsqueeze(-1) * w_NAB).flatten(-2),
            index=(group_NA.unsqueeze(-1) * size + expert_NAB).flatten(-2),
            probs=probs_NE,
            logits=logits_NE,
        )


def _check_kept(name: str, kept: int | None, seen: int, renormalise: bool) -> None:
    if kept is None:
        return
    if isinstance(kept, bool) or not isinstance(kept, int) or not 1 <= kept <= seen:
        raise RequestError(name, wanted=f"1 to {seen}, as many as there are to see", got=f"{kept}")
    if kept == 1 and seen > 1 and renormalise:
        raise RequestError(
            name,
            wanted="at least 2, or renormalise=false: a gate that keeps one renormalised weight "
            "gets no gradient",
            got="1",
        )
