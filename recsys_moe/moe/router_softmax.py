r"""Dense softmax gate: every expert sees every row.

Shapes: N rows, D input width, E experts.
"""

from collections.abc import Sequence

from torch import Tensor

from recsys_moe.moe.router_base import LinearRouter
from recsys_moe.moe.routing import Routing


class SoftmaxRouter(LinearRouter):
    r"""Weigh all experts (Ma et al., KDD 2018, section 4; of CGC and PLE by what is `visible`).

    .. math:: w = \operatorname{softmax}\left((W x + b) / \tau\right)

    >>> import torch
    >>> SoftmaxRouter(8, 3)(torch.zeros(5, 8)).weights.shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        bias: bool = True,
        temperature: float = 1.0,
        visible: Sequence[bool] | None = None,
    ) -> None:
        """Initialise as `nn.Linear` does.

        Args:
            width: Width of a row, D.
            num_experts: Experts in all, E.
            bias: Whether the logits have one.
            temperature: What logits are divided by: above 1 evens the weights out.
            visible: Which experts the router may choose, one bool an expert; None for all.

        Raises:
            RequestError: A size below 1, a temperature not above 0, or a wrong `visible`.
        """
        super().__init__(width, num_experts, bias=bias, temperature=temperature, visible=visible)

    def route(self, x_ND: Tensor) -> Routing:
        """Return a dense routing, weights (N, E) that sum to one."""
        logits_NE = self.logits(x_ND)
        w_NE = logits_NE.softmax(-1)
        return Routing(weights=w_NE, index=None, probs=w_NE, logits=logits_NE)
