r"""Soft mixture: experts see slots, each a blend of all rows.

Shapes: N rows, D input width, E experts, P slots of an expert, S = E P slots, O output width.
"""

import torch
from torch import Tensor, nn

from recsys_moe.errors import RequestError
from recsys_moe.moe.router_base import Router, device_kind, wide
from recsys_moe.moe.router_expert_choice import Bank
from recsys_moe.moe.routing import Routing


class SoftMoERouter(Router):
    r"""Blend rows into slots, compute slots, blend them back (Puigcerver et al., 2023).

    .. math:: L = X \Phi, \quad D = \operatorname{softmax}_{\text{rows}}(L), \quad
        C = \operatorname{softmax}_{\text{slots}}(L), \quad Y = C f(D^\top X)

    Nothing is chosen and nothing is dropped, but a row's output depends on the other rows of the
    batch: for training and offline use only.

    `mix` is the whole computation. The routing holds each expert's share of C for reports; since
    experts do not see rows, combining their outputs on rows by it is another function.
    """

    fixed_because = "its experts share out every row, so that one more changes what all see"
    exportable, mixes, blends = False, True, True
    not_exportable_because = (
        "soft MoE blends the rows of a batch into the inputs of its experts: "
        "a row's score would depend on the rows that it is scored with"
    )

    def __init__(self, width: int, num_experts: int, *, slots_per_expert: int) -> None:
        r"""Initialise :math:`\Phi` as a normal of variance 1/D, as the paper does.

        Args:
            width: Width of a row, D.
            num_experts: Experts, E.
            slots_per_expert: Blends that an expert computes, P.

        Raises:
            RequestError: No slot.
        """
        super().__init__(width, num_experts)
        if slots_per_expert < 1:
            raise RequestError("slots_per_expert", wanted="at least 1", got=f"{slots_per_expert}")
        self.slots_per_expert = slots_per_expert
        self.phi_DS = nn.Parameter(torch.randn(width, num_experts * slots_per_expert) * width**-0.5)

    def route(self, x_ND: Tensor) -> Routing:
        """Return a dense routing, (N, E): the share of each expert's slots in a row's blend."""
        return self._share(self._logits(x_ND))

    def mix(self, x_ND: Tensor, bank: Bank, mask_N: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Return the mixture (N, O) and the routing; masked rows enter no slot and get 0."""
        with torch.autocast(device_kind(x_ND), enabled=False):
            logits_NS = self._logits(wide(x_ND))
            routing = self._share(logits_NS)
            rows_ND, into_NS, back_NS = wide(x_ND), logits_NS, logits_NS.softmax(-1)
            if mask_N is not None:
                hidden_N1 = ~mask_N.unsqueeze(-1)
                rows_ND = rows_ND.masked_fill(hidden_N1, 0)
                into_NS = into_NS.masked_fill(hidden_N1, torch.finfo(into_NS.dtype).min / 2)
                back_NS, routing = back_NS.masked_fill(hidden_N1, 0), routing.masked(mask_N)
            slots_SD = into_NS.softmax(0).T @ rows_ND.to(into_NS.dtype)
        slots_EPD = torch.unflatten(slots_SD.to(x_ND.dtype), 0, (self.num_experts, -1))
        h_SO = bank.batched(slots_EPD).flatten(0, 1)
        with torch.autocast(device_kind(x_ND), enabled=False):
            return (back_NS @ h_SO.to(back_NS.dtype)).to(h_SO.dtype), routing

    def _logits(self, x_ND: Tensor) -> Tensor:
        kind = torch.promote_types(x_ND.dtype, wide(self.phi_DS).dtype)
        return x_ND.to(kind) @ self.phi_DS.to(kind)

    def _share(self, logits_NS: Tensor) -> Routing:
        logits_NEP = torch.unflatten(logits_NS, -1, (self.num_experts, -1))
        logits_NE = logits_NEP.logsumexp(-1)
        w_NE = logits_NE.softmax(-1)
        return Routing(weights=w_NE, index=None, probs=w_NE, logits=logits_NE)
