r"""Sigmoid scores with a selection bias that balances the load without a loss (DeepSeek-V3).

Shapes: N rows, D input width, E experts, K slots of a row, G groups of experts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys_moe.errors import RequestError
from recsys_moe.moe.router_base import LinearRouter, cannot_change, check_k, first_largest
from recsys_moe.moe.routing import Routing


class SigmoidRouter(LinearRouter):
    r"""Choose by score plus bias, weigh by score (DeepSeek-V3, equations 12 to 16).

    .. math:: s = \sigma(l), \quad T = \operatorname{TopK}(s + b, k), \quad
        w_i = c \, \frac{s_i}{\sum_{j \in T} s_j}

    The quotient is computed as a softmax of :math:`\log \sigma(l)`, so that scores that underflow
    do no harm. The bias b never enters a weight. It is no parameter: `update_bias` moves it.

    With groups, only experts of the `groups_kept` groups with the largest sums of their two best
    biased scores can be chosen (its node-limited routing).
    """

    selection_bias: Tensor

    def __init__(
        self,
        width: int,
        num_experts: int,
        k: int,
        *,
        scale: float = 1.0,
        renormalise: bool = True,
        num_groups: int = 1,
        groups_kept: int = 1,
        bias: bool = False,
        temperature: float = 1.0,
        visible: Sequence[bool] | None = None,
    ) -> None:
        """Initialise as `nn.Linear` does, with a selection bias of 0.

        Args:
            width: Width of a row, D.
            num_experts: Experts in all, E.
            k: Experts of a row, K.
            scale: The factor c of the weights (2.5 in DeepSeek-V3).
            renormalise: Whether a row's weights sum to `scale`; else they are c times the scores.
            num_groups: Groups of neighbouring experts, G.
            groups_kept: Groups that a row may choose from.
            bias: Whether the logits have one.
            temperature: What logits are divided by.
            visible: Which experts the router may choose, one bool an expert; None for all.

        Raises:
            RequestError: A k that cannot be had, k = 1 with `renormalise`, a scale not above 0,
                groups that do not divide the experts or hold too few, or groups with `visible`.
        """
        super().__init__(width, num_experts, bias=bias, temperature=temperature, visible=visible)
        check_k(k, self.num_visible, renormalise=renormalise)
        if not scale > 0:
            raise RequestError("scale", wanted="more than 0", got=f"{scale}")
        if num_groups < 1 or num_experts % num_groups or (num_groups > 1 and visible is not None):
            raise RequestError(
                "num_groups",
                wanted=f"a divisor of {num_experts} experts, 1 where some are hidden",
                got=f"{num_groups}",
            )
        if not 1 <= groups_kept <= num_groups or k > groups_kept * (num_experts // num_groups):
            raise RequestError(
                "groups_kept",
                wanted=f"1 to {num_groups} groups, with {k} experts in them",
                got=f"{groups_kept}",
            )
        self.k, self.scale, self.renormalise = k, scale, renormalise
        self.num_groups, self.groups_kept = num_groups, groups_kept
        self.register_buffer("selection_bias", torch.zeros(num_experts))

    def route(self, x_ND: Tensor) -> Routing:
        """Return a sparse routing, (N, K), slots in the order of the biased scores."""
        logits_NE = self.logits(x_ND)
        log_s_NE = self.hide(F.logsigmoid(logits_NE))
        s_NE = log_s_NE.exp()
        index_NK = first_largest(self._selectable(s_NE + self.biases()), self.k)
        if self.renormalise:
            w_NK = log_s_NE.gather(-1, index_NK).softmax(-1)
        else:
            w_NK = s_NE.gather(-1, index_NK)
        return Routing(
            weights=self.scale * w_NK,
            index=index_NK,
            probs=log_s_NE.softmax(-1),
            logits=logits_NE,
        )

    def grow(self, num_experts: int, *, is_open: bool = True) -> None:
        """Add experts with a selection bias of their own, in `added_bias_N`."""
        super().grow(num_experts, is_open=is_open)
        name = f"added_bias_{len(self.added) - 1}"
        self.register_buffer(name, self.selection_bias.new_zeros(num_experts))

    def keep(self, experts: Sequence[int]) -> None:
        """Forget all experts but these, and their selection biases."""
        biases, num_added = self._biases(), len(self.added)
        closed = [self.get_buffer(f"added_bias_{n}") for n in range(self.num_open, num_added)]
        super().keep(experts)
        first, kept = 0, []
        for bias in biases:
            kept.append(bias[[e - first for e in experts if first <= e < first + len(bias)]])
            first += len(bias)
        for number in range(num_added):
            delattr(self, f"added_bias_{number}")
        self.selection_bias = kept[0]
        for number, bias in enumerate([*(bias for bias in kept[1:] if len(bias)), *closed]):
            self.register_buffer(f"added_bias_{number}", bias)

    def biases(self) -> Tensor:
        """Return the selection biases of all experts, (E,)."""
        parts = self._biases()
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _biases(self) -> list[Tensor]:
        """Return the selection biases of the first experts, and of the added ones that count."""
        added = [self.get_buffer(f"added_bias_{number}") for number in range(self.num_open)]
        return [self.selection_bias, *added]

    def _resized(self, num_experts: int) -> None:
        check_k(self.k, num_experts, renormalise=self.renormalise)
        super()._resized(num_experts)

    def _check_free(self) -> None:
        if self.num_groups > 1:
            raise cannot_change(self, "its experts stand in groups of one size")
        super()._check_free()

    @torch.no_grad()
    def update_bias(self, counts_E: Tensor, rate: float = 1e-3) -> None:
        r"""Raise the bias of experts with too little load, lower that of the others.

        Call it once per optimiser step, with the rows each expert got in that whole step: summed
        over micro-batches and over ranks, masked rows left out (`Routing.counts`).

        .. math:: b_e \leftarrow b_e + u \operatorname{sign}(\bar c - c_e)

        Wang et al., 2024 (arXiv 2408.15664), algorithm 1. Nothing waits for the device.

        Args:
            counts_E: Loads of the last step, (E,).
            rate: The step u.
        """
        counts_E = counts_E.to(torch.promote_types(counts_E.dtype, torch.float32))
        if self.visible is None:
            gap_E = counts_E.mean() - counts_E
        else:
            counts_E = counts_E * self.visible
            gap_E = (counts_E.sum() / self.num_visible - counts_E) * self.visible
        biases = self._biases()
        steps = torch.split(rate * torch.sign(gap_E), [len(bias) for bias in biases])
        for bias, step in zip(biases, steps, strict=True):
            bias += step.to(bias.dtype)

    def _selectable(self, scores_NE: Tensor) -> Tensor:
        """Return biased scores, -inf where an expert is out of sight or of its groups."""
        scores_NE = self.hide(scores_NE)
        if self.num_groups == 1:
            return scores_NE
        scores_NGS = torch.unflatten(scores_NE, -1, (self.num_groups, -1))
        best_NGT = scores_NGS.topk(min(2, scores_NGS.shape[-1]), dim=-1).values
        best_NG = best_NGT.sum(2)  # ONNX Runtime reduces no empty batch along an axis of -1
        group_NA1 = first_largest(best_NG, self.groups_kept).unsqueeze(-1)
        group_E = torch.arange(self.num_experts, device=scores_NE.device) // scores_NGS.shape[-1]
        kept_NE = (group_NA1 == group_E).any(1)
        return scores_NE.masked_fill(~kept_NE, -torch.inf)
