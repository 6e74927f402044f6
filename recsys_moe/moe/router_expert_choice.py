r"""Experts choose their rows, so that every load is the same.

Shapes: N rows, D input width, E experts, C rows of an expert, O output width.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from recsys_moe.errors import RequestError
from recsys_moe.moe.router_base import LinearRouter, device_kind, wide
from recsys_moe.moe.routing import Routing


class Bank(Protocol):
    """Experts that compute as many rows each."""

    def batched(self, x_ECD: Tensor) -> Tensor:
        """Return each expert's output on its own C rows, (E, C, O)."""


class ExpertChoiceRouter(LinearRouter):
    r"""Let each expert take its C best rows (Zhou et al., 2022).

    .. math:: S = \operatorname{softmax}_e(X W^\top), \quad
        I_e = \operatorname{TopC}(S_{:, e}), \quad w_{ne} = S_{ne} [n \in I_e], \quad
        C = \lceil N c_f / E \rceil

    A row gets from none to all of the experts, and which ones depends on the other rows of the
    batch: for training and offline use only. Ties go to the row that comes first.

    The routing is dense, with `kept` at the chosen pairs; `mix` computes those pairs alone.
    """

    fixed_because = "with another number of experts each of the others takes another number of rows"
    exportable, mixes = False, True
    not_exportable_because = (
        "expert choice ranks the rows of a batch against each other: "
        "a row's score would depend on the rows that it is scored with"
    )

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        capacity_factor: float,
        bias: bool = False,
        temperature: float = 1.0,
        visible: Sequence[bool] | None = None,
    ) -> None:
        """Initialise as `nn.Linear` does.

        Args:
            width: Width of a row, D.
            num_experts: Experts in all, E.
            capacity_factor: Experts of a row on average.
            bias: Whether the logits have one.
            temperature: What logits are divided by: above 1 evens the weights out.
            visible: Which experts take rows, one bool an expert; None for all.

        Raises:
            RequestError: A capacity factor outside 0 to the visible experts.
        """
        super().__init__(width, num_experts, bias=bias, temperature=temperature, visible=visible)
        if not 0 < capacity_factor <= self.num_visible:
            raise RequestError(
                "capacity_factor",
                wanted=f"more than 0 and at most {self.num_visible}",
                got=f"{capacity_factor}",
            )
        self.capacity_factor = capacity_factor

    def forward(self, x_ND: Tensor, mask_N: Tensor | None = None) -> Routing:
        """Return a dense routing, (N, E), 0 where an expert did not take a row."""
        return self._choose(x_ND, mask_N)[0]

    def mix(self, x_ND: Tensor, bank: Bank, mask_N: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Return the mixture (N, O), computed for the chosen pairs alone, and the routing."""
        routing, rows_EC = self._choose(x_ND, mask_N)
        h_ECO = bank.batched(x_ND[rows_EC])
        w_EC = routing.weights.T.gather(1, rows_EC)
        h_RO = (w_EC.unsqueeze(-1) * h_ECO).flatten(0, 1)
        y_NO = torch.zeros(len(x_ND), h_RO.shape[-1], dtype=h_RO.dtype, device=x_ND.device)
        y_NO = y_NO.index_add(0, rows_EC.flatten(), h_RO)
        return y_NO.to(h_ECO.dtype), routing

    def _choose(self, x_ND: Tensor, mask_N: Tensor | None) -> tuple[Routing, Tensor]:
        """Return the routing, and each expert's candidates, best first, (E, C)."""
        with torch.autocast(device_kind(x_ND), enabled=False):
            logits_NE = self.logits(wide(x_ND))
            s_NE = logits_NE.softmax(-1)
            rank_EN = s_NE.detach().T
            if mask_N is not None:
                rank_EN = rank_EN.masked_fill(~mask_N, -1.0)
            most = min(self._capacity(len(x_ND)), len(x_ND))
            order_EN = torch.sort(rank_EN, dim=-1, descending=True, stable=True).indices
            rows_EC = order_EN[:, :most]
            taken_EC = torch.ones_like(rows_EC, dtype=torch.bool)
            if mask_N is not None:  # fewer rows count, so each expert takes fewer
                count = mask_N.sum().to(torch.float64)
                capacity = torch.ceil(count * self.capacity_factor / self.num_experts - 1e-9)
                place_C = torch.arange(most, device=x_ND.device)
                taken_EC = (place_C < capacity).expand_as(rows_EC) & mask_N[rows_EC]
            if self.visible is not None:
                taken_EC = taken_EC & self.visible.unsqueeze(-1)
            kept_EN = torch.zeros_like(rank_EN, dtype=torch.bool)
            kept_NE = kept_EN.scatter(1, rows_EC, taken_EC).T
            weights_NE = s_NE.masked_fill(~kept_NE, 0)
            return (
                Routing(weights=weights_NE, index=None, probs=s_NE, logits=logits_NE, kept=kept_NE),
                rows_EC,
            )

    def _capacity(self, num_rows: int) -> int:
        """Return the rows that an expert takes, C; 1e-9 absorbs the rounding of the quotient."""
        return math.ceil(num_rows * self.capacity_factor / self.num_experts - 1e-9)
