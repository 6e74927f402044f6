r"""An adaptive number of experts: as many as a row needs to reach a share of probability.

Shapes: N rows, D input width, E experts, K slots of a row.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys_moe.errors import RequestError
from recsys_moe.moe.router_base import LinearRouter, check_k, first_largest
from recsys_moe.moe.routing import Routing


class TopPRouter(LinearRouter):
    r"""Choose the fewest experts whose probabilities sum to p (Huang et al., 2024).

    With :math:`\pi` the experts by falling :math:`p = \operatorname{softmax}(l)`,

    .. math:: t = \min\{k : \textstyle\sum_{j \le k} p_{\pi_j} \ge p\}, \qquad
        w_{\pi_i} = \frac{p_{\pi_i}}{\sum_{j \le t} p_{\pi_j}} \; (i \le t)

    (arXiv 2403.07652; the quotient is ours, so that weights sum to one). The
    first expert is always kept; at most `max_experts` are. A row with one expert has the weight 1
    and gives the router no gradient: `entropy` of the routing is the loss that keeps it learning.
    Both balance losses are the paper's, with its coefficients.
    """

    balance: Mapping[str, float] = {"switch": 0.01, "entropy": 1e-4}

    def __init__(
        self,
        width: int,
        num_experts: int,
        p: float,
        *,
        max_experts: int,
        renormalise: bool = True,
        bias: bool = False,
        temperature: float = 1.0,
        visible: Sequence[bool] | None = None,
    ) -> None:
        """Initialise as `nn.Linear` does.

        Args:
            width: Width of a row, D.
            num_experts: Experts in all, E.
            p: The share of probability to reach, above 0 and at most 1.
            max_experts: The most experts of a row, K.
            renormalise: Whether a row's weights sum to one; else they are its probabilities.
            bias: Whether the logits have one.
            temperature: What logits are divided by: above 1 evens the weights out.
            visible: Which experts the router may choose, one bool an expert; None for all.

        Raises:
            RequestError: p outside (0, 1], or `max_experts` outside 1 to the visible experts, or
                1 with `renormalise`.
        """
        super().__init__(width, num_experts, bias=bias, temperature=temperature, visible=visible)
        if not 0 < p <= 1:
            raise RequestError("p", wanted="a share above 0 and at most 1", got=f"{p}")
        check_k(max_experts, self.num_visible, renormalise=renormalise, name="max_experts")
        self.p, self.max_experts, self.renormalise = p, max_experts, renormalise

    def route(self, x_ND: Tensor) -> Routing:
        """Return a sparse routing, (N, K), whose `kept` says which slots a row uses."""
        logits_NE = self.logits(x_ND)
        probs_NE, index_NK = logits_NE.softmax(-1), first_largest(logits_NE, self.max_experts)
        p_NK = probs_NE.gather(-1, index_NK)
        before_NK = F.pad(p_NK.detach().cumsum(-1)[:, :-1], (1, 0))
        kept_NK = before_NK < self.p
        if self.renormalise:
            chosen_NK = logits_NE.gather(-1, index_NK)
            w_NK = chosen_NK.masked_fill(~kept_NK, -torch.inf).softmax(-1)
        else:
            w_NK = p_NK.masked_fill(~kept_NK, 0)
        return Routing(weights=w_NK, index=index_NK, probs=probs_NE, logits=logits_NE, kept=kept_NK)

    def _resized(self, num_experts: int) -> None:
        check_k(self.max_experts, num_experts, renormalise=self.renormalise, name="max_experts")
        super()._resized(num_experts)


def entropy(routing: Routing, mask_N: Tensor | None = None) -> Tensor:
    r"""Return the mean entropy of `probs`, the loss that makes a router decide.

    .. math:: \frac{1}{N} \sum_n - \sum_e p_{ne} \log p_{ne}

    Huang et al., 2024 (arXiv 2403.07652), their dynamic loss. Rows that `mask_N`
    hides do not count.

    Args:
        routing: Any routing.
        mask_N: bool (N,), false at rows to leave out.
    """
    p_NE = routing.probs
    h_N = -(p_NE * p_NE.clamp(min=torch.finfo(p_NE.dtype).tiny).log()).sum(-1)
    if mask_N is None:
        mask_N = torch.ones_like(h_N, dtype=torch.bool)
    return h_N.masked_fill(~mask_N, 0).sum() / mask_N.sum().clamp(min=1)
