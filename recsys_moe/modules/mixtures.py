r"""What stands between the embeddings and the towers: one representation per task.

Shapes: B batch, I input width, E experts, H expert width, T tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys_moe.modules.experts import ExpertBank, Gate, mix


class SharedBottom(nn.Module):
    """One trunk for all tasks (Caruana, Machine Learning 1997): a bank of one expert, no gate."""

    def __init__(self, bank: ExpertBank, num_tasks: int) -> None:
        super().__init__()
        self.bank, self.num_tasks, self.output_width = bank, num_tasks, bank.output_width

    def forward(self, x_BI: Tensor) -> tuple[Tensor, ...]:
        """Return the same (B, H) for each task."""
        return (self.bank(x_BI)[:, 0],) * self.num_tasks


class MMoE(nn.Module):
    r"""Mix one bank of experts once per task (Ma et al., KDD 2018, section 4).

    .. math:: y_t = \sum_e \operatorname{softmax}(g_t(x))_e \, f_e(x)
    """

    def __init__(self, bank: ExpertBank, gates: Sequence[Gate]) -> None:
        super().__init__()
        self.bank, self.gates, self.output_width = bank, nn.ModuleList(gates), bank.output_width

    def forward(self, x_BI: Tensor) -> tuple[Tensor, ...]:
        """Return one mixture (B, H) per task."""
        h_BEH = self.bank(x_BI)
        return tuple(mix(gate(x_BI), h_BEH) for gate in self.gates)


class CGC(nn.Module):
    r"""Customised gate control (Tang et al., RecSys 2020, section 4.1).

    A task mixes its own experts and the shared ones; on all levels but the last, the shared gate
    mixes all experts for the level above.

    .. math:: y_t = \sum_{e \in \mathrm{own}_t \cup \mathrm{shared}}
        \operatorname{softmax}(g_t(x_t))_e \, f_e(x)
    """

    def __init__(
        self,
        task_banks: Sequence[ExpertBank],
        shared_bank: ExpertBank,
        task_gates: Sequence[Gate],
        shared_gate: Gate | None,
    ) -> None:
        super().__init__()
        self.task_banks, self.shared_bank = nn.ModuleList(task_banks), shared_bank
        self.task_gates, self.shared_gate = nn.ModuleList(task_gates), shared_gate

    def forward(
        self, x_tasks: tuple[Tensor, ...], x_shared_BI: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return one mixture (B, H) per task, and the shared one (its input, on the last level)."""
        own = [bank(x_BI) for bank, x_BI in zip(self.task_banks, x_tasks, strict=True)]
        shared_BEH = self.shared_bank(x_shared_BI)
        mixed = tuple(
            mix(gate(x_BI), torch.cat([own_BEH, shared_BEH], dim=1))
            for gate, x_BI, own_BEH in zip(self.task_gates, x_tasks, own, strict=True)
        )
        if self.shared_gate is None:
            return mixed, x_shared_BI
        return mixed, mix(self.shared_gate(x_shared_BI), torch.cat([*own, shared_BEH], dim=1))


class PLE(nn.Module):
    """Progressive layered extraction: levels of CGC, each fed by the one below (section 4.2)."""

    def __init__(self, levels: Sequence[CGC], num_tasks: int, output_width: int) -> None:
        super().__init__()
        self.levels, self.num_tasks, self.output_width = (
            nn.ModuleList(levels),
            num_tasks,
            output_width,
        )

    def forward(self, x_BI: Tensor) -> tuple[Tensor, ...]:
        """Return one mixture (B, H) per task."""
        x_tasks, x_shared_BI = (x_BI,) * self.num_tasks, x_BI
        for level in self.levels:
            x_tasks, x_shared_BI = level(x_tasks, x_shared_BI)
        return x_tasks
