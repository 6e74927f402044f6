r"""DSelect-k: a sparse gate that is smooth in its parameters.

Shapes: N rows, D input width, E experts, J single-expert selectors, M bits of an expert's number.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recsys_moe.errors import RequestError
from recsys_moe.moe.router_base import Router, full_linear
from recsys_moe.moe.routing import Routing

_TINY = 1e-6  # the published code's, inside the logarithm


class DSelectKRouter(Router):
    r"""Mix k selectors, each of which spells an expert's number in smooth bits.

    .. math:: q_j(x)_e = \prod_b S(z_{jb})^{c_b(e)} (1 - S(z_{jb}))^{1 - c_b(e)}, \qquad
        g(x) = \sum_j \operatorname{softmax}(\alpha(x))_j \, q_j(x)

    .. math:: S(t) = -\tfrac{2}{\gamma^3} t^3 + \tfrac{3}{2 \gamma} t + \tfrac12
        \text{ within } |t| \le \gamma / 2, \text{ else 0 or 1}

    with :math:`c_b(e)` the bits of e, most significant first (Hazimeh et al., NeurIPS 2021; z and
    :math:`\alpha` linear in the row and starting values as in the published code). A selector with
    all bits decided has one expert, so that a row has at most k; `selector_entropy` leads there.
    The paper's gates for several tasks are static: z and :math:`\alpha` are numbers learnt for the
    task, the same for all rows (`per_row=False`).

    Where codes outnumber the experts in sight, some mass lies on codes of no expert. Training sees
    it, with `unreachable_mass` as the paper's penalty against it; in evaluation the weights are
    divided by their sum (even weights, where nothing is left).

    The balance losses are the paper's; it tunes their coefficients for each data set, these are
    ours, small enough to let the tasks' losses lead.
    """

    fixed_because = "its experts are the words of a binary code"
    balance: Mapping[str, float] = {
        "selector_entropy": 0.001,
        "unreachable_mass": 0.01,
    }

    def __init__(
        self,
        width: int,
        num_experts: int,
        k: int,
        *,
        gamma: float = 1.0,
        per_row: bool = True,
        visible: Sequence[bool] | None = None,
    ) -> None:
        """Initialise the bits near one half, as the published code does.

        Args:
            width: Width of a row, D.
            num_experts: Experts in all, E, at least 2.
            k: Selectors, J: the most experts of a row once all bits are decided.
            gamma: Width of the smooth part of a bit.
            per_row: Whether the choice depends on the row; else it is the router's alone.
            visible: Which experts the router may choose, one bool an expert; None for all.

        Raises:
            RequestError: Fewer than two experts, no selector, or a gamma not above 0.
        """
        super().__init__(width, num_experts, visible=visible)
        if num_experts < 2:
            raise RequestError("num_experts", wanted="at least 2", got=f"{num_experts}")
        if k < 1:
            raise RequestError("k", wanted="at least 1 selector", got=f"{k}")
        if not gamma > 0:
            raise RequestError("gamma", wanted="more than 0", got=f"{gamma}")
        self.k, self.gamma, self.num_bits = k, gamma, (num_experts - 1).bit_length()
        self.leaks = self.num_visible < 2**self.num_bits
        self.bits = nn.Linear(width, k * self.num_bits) if per_row else Constant(k * self.num_bits)
        self.alpha = nn.Linear(width, k) if per_row else Constant(k)
        for layer, bound in ((self.bits, gamma / 100), (self.alpha, 0.05)):
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound)

    def route(self, x_ND: Tensor) -> Routing:
        """Return a dense routing whose `kept` are the weights above 0, with its `selectors`."""
        z_NJM = torch.unflatten(_read(self.bits, x_ND), -1, (self.k, self.num_bits))
        q_NJE = self._spell(smooth_step(z_NJM, self.gamma))
        mix_NJ1 = _read(self.alpha, x_ND).softmax(-1).unsqueeze(-1)
        g_NE = (mix_NJ1 * q_NJE).sum(1)
        probs_NE = self._share(g_NE) if self.leaks else g_NE
        w_NE = g_NE if self.training else probs_NE
        return Routing(
            weights=w_NE,
            index=None,
            probs=probs_NE,
            logits=self.hide(probs_NE.clamp(min=torch.finfo(probs_NE.dtype).tiny).log()),
            kept=w_NE > 0,
            selectors=q_NJE,
        )

    def _spell(self, s_NJM: Tensor) -> Tensor:
        """Return the product of bits for the codes of experts, 0 for those out of sight."""
        q_NJC = torch.ones_like(s_NJM[..., :1])
        for s_NJ in s_NJM.unbind(-1):
            s_NJ1 = s_NJ.unsqueeze(-1)
            q_NJC = torch.stack((q_NJC * (1 - s_NJ1), q_NJC * s_NJ1), dim=-1).flatten(-2)
        q_NJE = q_NJC[..., : self.num_experts]
        return q_NJE if self.visible is None else q_NJE.masked_fill(~self.visible, 0)

    def _share(self, g_NE: Tensor) -> Tensor:
        """Return weights divided by their sum; even weights where that is 0."""
        total_N1 = g_NE.sum(-1, keepdim=True)
        shown_NE = torch.ones_like(g_NE)
        if self.visible is not None:
            shown_NE = shown_NE.masked_fill(~self.visible, 0)
        left_N1 = total_N1 > torch.finfo(g_NE.dtype).tiny
        return torch.where(left_N1, g_NE, shown_NE) / torch.where(
            left_N1, total_N1, shown_NE.sum(-1, keepdim=True)
        )


class Constant(nn.Module):
    """Learnt numbers, the same for every row: a linear layer without its weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return the numbers once a row, float32 or wider."""
        kind = torch.promote_types(x_ND.dtype, self.bias.dtype)
        return self.bias.to(torch.promote_types(kind, torch.float32)).expand(x_ND.shape[0], -1)


def smooth_step(t: Tensor, gamma: float) -> Tensor:
    """Return the cubic step: 0 below -gamma/2, 1 above gamma/2, smooth in between.

    Hazimeh et al., ICML 2020 (arXiv 2002.07772).
    """
    t = t.clamp(-gamma / 2, gamma / 2)
    return -2 / gamma**3 * t**3 + 3 / (2 * gamma) * t + 0.5


def selector_entropy(routing: Routing, mask_N: Tensor | None = None) -> Tensor:
    r"""Return the mean over rows of the selectors' entropies, the loss that decides their bits.

    .. math:: \frac{1}{N} \sum_n \sum_j - \sum_e q_{nje} \log (q_{nje} + 10^{-6})

    Hazimeh et al., NeurIPS 2021; the constant is the published code's.

    Args:
        routing: Of a DSelect-k router.
        mask_N: bool (N,), false at rows to leave out.

    Raises:
        RequestError: The routing has no selectors.
    """
    q_NJE = _selectors(routing)
    return _mean(-(q_NJE * (q_NJE + _TINY).log()).sum((-1, -2)), mask_N)


def unreachable_mass(routing: Routing, mask_N: Tensor | None = None) -> Tensor:
    r"""Return the penalty against mass on codes of no expert; J where there is none.

    .. math:: \frac{1}{N} \sum_n \sum_j \frac{1}{\sum_e q_{nje}}

    Hazimeh et al., NeurIPS 2021, for numbers of experts that are no power of 2.

    Args:
        routing: Of a DSelect-k router.
        mask_N: bool (N,), false at rows to leave out.

    Raises:
        RequestError: The routing has no selectors.
    """
    return _mean((1 / _selectors(routing).sum(-1).clamp(min=_TINY)).sum(-1), mask_N)


def _read(layer: nn.Linear | Constant, x_ND: Tensor) -> Tensor:
    read_NX: Tensor = full_linear(layer, x_ND) if isinstance(layer, nn.Linear) else layer(x_ND)
    return read_NX


def _selectors(routing: Routing) -> Tensor:
    if routing.selectors is None:
        raise RequestError("routing", wanted="one of a DSelect-k router", got="no selectors")
    return routing.selectors


def _mean(loss_N: Tensor, mask_N: Tensor | None) -> Tensor:
    if mask_N is None:
        mask_N = torch.ones_like(loss_N, dtype=torch.bool)
    return loss_N.masked_fill(~mask_N, 0).sum() / mask_N.sum().clamp(min=1)
