r"""The k best experts of a row: renormalised (Mixtral), not (Switch), or chosen by noise (Shazeer).

Shapes: N rows, D input width, E experts, K slots of a row.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_moe.moe.router_base import LinearRouter, check_k, first_largest, full_linear
from recsys_moe.moe.routing import Routing


class TopKRouter(LinearRouter):
    r"""Weigh the k experts with the largest logits.

    With :math:`T = \operatorname{TopK}(l, k)` and :math:`p = \operatorname{softmax}(l)`,

    .. math:: w_i = \frac{p_i}{\sum_{j \in T} p_j} = \operatorname{softmax}(l_T)_i
        \quad\text{renormalised,}\qquad w_i = p_i \quad\text{not.}

    The first is Mixtral's (Jiang et al., 2024, section 2.1), the second Switch's (Fedus et al.,
    2021, equations 1 and 2), with k = 1 there. Its balance loss has Switch's coefficient (section
    2.2); Mixtral's is left to its trainer.

    >>> TopKRouter(8, 4, k=2)(torch.zeros(1, 8)).index  # a tie: the first ones
    tensor([[0, 1]])
    """

    balance: Mapping[str, float] = {"switch": 0.01}

    def __init__(
        self,
        width: int,
        num_experts: int,
        k: int,
        *,
        renormalise: bool = True,
        bias: bool = False,
        temperature: float = 1.0,
        visible: Sequence[bool] | None = None,
    ) -> None:
        """Initialise as `nn.Linear` does.

        Args:
            width: Width of a row, D.
            num_experts: Experts in all, E.
            k: Experts of a row, K.
            renormalise: Whether a row's K weights sum to one.
            bias: Whether the logits have one.
            temperature: What logits are divided by: above 1 evens the weights out.
            visible: Which experts the router may choose, one bool an expert; None for all.

        Raises:
            RequestError: A k that cannot be had, or k = 1 with `renormalise`, which would leave
                the router without a gradient.
        """
        super().__init__(width, num_experts, bias=bias, temperature=temperature, visible=visible)
        check_k(k, self.num_visible, renormalise=renormalise)
        self.k, self.renormalise = k, renormalise

    def route(self, x_ND: Tensor) -> Routing:
        """Return a sparse routing, weights (N, K), the largest first."""
        return top_k_routing(self.logits(x_ND), self.k, renormalise=self.renormalise)

    def _resized(self, num_experts: int) -> None:
        check_k(self.k, num_experts, renormalise=self.renormalise)
        super()._resized(num_experts)


class NoisyTopKRouter(LinearRouter):
    r"""Choose by noisy logits in training (Shazeer et al., 2017, equations 3 to 5).

    .. math:: H_i = (W_g x)_i + \varepsilon_i \operatorname{softplus}(W_n x)_i, \qquad
        w = \operatorname{softmax}(\operatorname{KeepTopK}(H, k))

    with :math:`\varepsilon` from the standard normal distribution; without it outside training.
    Both matrices start at zero (appendix A): noise alone chooses, so that loads start even. The
    balance losses are the paper's, with the coefficients of its language models.
    """

    fixed_because = (
        "in training its noise chooses too, so that an added expert cannot start out small"
    )
    balance: Mapping[str, float] = {"importance": 0.1, "load": 0.1}

    def __init__(
        self,
        width: int,
        num_experts: int,
        k: int,
        *,
        temperature: float = 1.0,
        visible: Sequence[bool] | None = None,
    ) -> None:
        """Initialise with zeros.

        Args:
            width: Width of a row, D.
            num_experts: Experts in all, E.
            k: Experts of a row, K, at least 2.
            temperature: What logits are divided by, before the noise.
            visible: Which experts the router may choose, one bool an expert; None for all.

        Raises:
            RequestError: A k that cannot be had, or k = 1, which leaves no gradient.
        """
        super().__init__(width, num_experts, bias=False, temperature=temperature, visible=visible)
        check_k(k, self.num_visible, renormalise=True)
        self.k = k
        self.noise = nn.Linear(width, num_experts, bias=False)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.noise.weight)

    def route(self, x_ND: Tensor) -> Routing:
        """Return a sparse routing, (N, K), with `clean` and `spread` (N, E) in training."""
        clean_NE = self.logits(x_ND)
        if not self.training:
            return top_k_routing(clean_NE, self.k, renormalise=True)
        spread_NE = F.softplus(full_linear(self.noise, x_ND))
        noisy_NE = clean_NE + torch.randn_like(clean_NE) * spread_NE
        chosen = top_k_routing(noisy_NE, self.k, renormalise=True)
        return Routing(
            weights=chosen.weights,
            index=chosen.index,
            probs=chosen.probs,
            logits=noisy_NE,
            clean=clean_NE,
            spread=spread_NE,
        )


def top_k_routing(logits_NE: Tensor, k: int, *, renormalise: bool) -> Routing:
    """Return the routing to the k largest logits; the gradient reaches those weights alone."""
    probs_NE, index_NK = logits_NE.softmax(-1), first_largest(logits_NE, k)
    if renormalise:
        w_NK = logits_NE.gather(-1, index_NK).softmax(-1)
    else:
        w_NK = probs_NE.gather(-1, index_NK)
    return Routing(weights=w_NK, index=index_NK, probs=probs_NE, logits=logits_NE)
