r"""An expert for the rows of one domain: those in which a feature has one value.

Shapes: B batch, S code slots, I input width, H mixture width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys_moe.moe.banks import Bank
from recsys_moe.moe.banks_hetero import HeteroBank
from recsys_moe.moe.router_base import device_kind, full_linear, wide

FIRST_LOGIT = -3.0
"""The gates' logit at the start: a domain's expert begins with a share of 0.05."""


class DomainExpert(nn.Module):
    r"""Mix an expert of the domain into each task's mixture, in the domain's rows alone.

    .. math:: y_t \leftarrow (1 - g_t(x)) \, y_t + g_t(x) \, f(x), \qquad
        g_t(x) = \sigma(w_t x + b_t)

    A row outside the domain keeps its mixture bit for bit, whatever the expert has learnt.
    """

    def __init__(
        self, bank: Bank | HeteroBank, num_tasks: int, slots: tuple[int, int], code: int
    ) -> None:
        """Put the parts together.

        Args:
            bank: One expert.
            num_tasks: As many gates.
            slots: From which code slot to before which one the domain's feature lies.
            code: The code in one of these slots that makes a row one of the domain.
        """
        super().__init__()
        self.bank, self.slots, self.code = bank, slots, code
        self.gates = nn.ModuleList(nn.Linear(bank.input_width, 1) for _ in range(num_tasks))
        for gate in self.gates:
            nn.init.zeros_(gate.weight)  # type: ignore[arg-type]
            nn.init.constant_(gate.bias, FIRST_LOGIT)  # type: ignore[arg-type]

    def forward(
        self, mixed: Sequence[Tensor], x_BI: Tensor, codes_BS: Tensor
    ) -> tuple[Tensor, ...]:
        """Return each task's mixture (B, H) with the domain's expert in the domain's rows."""
        x_BI = x_BI[:, : self.bank.input_width]
        is_here_B1 = self.contains(codes_BS).unsqueeze(1)
        h_BH = self.bank(x_BI)[:, 0]
        found = []
        for gate, y_BH in zip(self.gates, mixed, strict=True):
            with torch.autocast(device_kind(x_BI), enabled=False):
                g_B1 = torch.sigmoid(full_linear(gate, wide(x_BI)))  # type: ignore[arg-type]
            g_B1 = g_B1.to(y_BH.dtype)
            found.append(torch.where(is_here_B1, (1 - g_B1) * y_BH + g_B1 * h_BH, y_BH))
        return tuple(found)

    def contains(self, codes_BS: Tensor) -> Tensor:
        """Return which rows are the domain's, bool (B,)."""
        first, stop = self.slots
        same_BL = codes_BS[:, first:stop] == self.code
        return same_BL[:, 0] if stop - first == 1 else same_BL.any(1)

    def for_tasks(self, places: Sequence[int]) -> "DomainExpert":
        """Return the same expert with the gates of some of the tasks, parameters shared."""
        new = DomainExpert(self.bank, len(places), self.slots, self.code)
        new.gates = nn.ModuleList(self.gates[place] for place in places)
        return new
