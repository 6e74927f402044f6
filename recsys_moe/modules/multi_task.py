r"""The whole model: embeddings, a mixture, one tower per task.

Shapes: B batch, S code slots, K number columns, D input width, H mixture width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_moe.modules.domains import DomainExpert
from recsys_moe.modules.embeddings import Embeddings
from recsys_moe.modules.gated import Gated, Layer
from recsys_moe.modules.mixtures import Mixture


class Tower(nn.Module):
    """One task's network above the mixture: hidden layers with ReLU, then a logit."""

    def __init__(self, input_width: int, widths: Sequence[int], *, dropout: float = 0.0) -> None:
        super().__init__()
        ins = [input_width, *widths]
        self.hidden = nn.ModuleList(nn.Linear(i, o) for i, o in zip(ins[:-1], widths, strict=True))
        self.logit = nn.Linear(ins[-1], 1)
        self.dropout = dropout

    def forward(self, h_BH: Tensor) -> Tensor:
        """Return a logit per row, (B,)."""
        for layer in self.hidden:
            h_BH = F.dropout(F.relu(layer(h_BH)), self.dropout, self.training)
        logit_B1: Tensor = self.logit(h_BH)
        return logit_B1.squeeze(-1)


class MultiTaskModel(nn.Module):
    """From codes and numbers to one logit per task, P(task given its space).

    The mixture reads the embeddings and the numbers, and where one of its banks asks for them
    (`reads_raw`) the codes and the numbers once more, as they come. Experts of `domains` come
    between the mixture and the towers.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        mixture: Mixture,
        towers: dict[str, Tower],
        *,
        embedding_dropout: float = 0.0,
        reads_raw: bool = False,
        domains: Sequence[DomainExpert] = (),
    ) -> None:
        super().__init__()
        self.domains = nn.ModuleList(domains)
        self.embeddings, self.mixture = embeddings, mixture
        self.tasks = tuple(towers)
        self.towers = nn.ModuleList(towers.values())  # a task's name may hold a dot
        self.embedding_dropout, self.reads_raw = embedding_dropout, reads_raw

    def forward(self, codes_BS: Tensor, numbers_BK: Tensor) -> dict[str, Tensor]:
        """Return the tasks' logits, (B,) each, from int32 codes and float32 numbers."""
        x_BD = self._input(codes_BS, numbers_BK)
        return self._logits(self.mixture(x_BD), x_BD, codes_BS)

    def routed(
        self, codes_BS: Tensor, numbers_BK: Tensor
    ) -> tuple[dict[str, Tensor], tuple[Gated, ...]]:
        """Return the tasks' logits, and what each gate decided."""
        x_BD = self._input(codes_BS, numbers_BK)
        mixed, gated = self.mixture.routed(x_BD)
        return self._logits(mixed, x_BD, codes_BS), gated

    def layers(self) -> tuple[Layer, ...]:
        """Return the layers of experts, none where there is no gate."""
        return self.mixture.layers()

    def _input(self, codes_BS: Tensor, numbers_BK: Tensor) -> Tensor:
        e_BD = F.dropout(self.embeddings(codes_BS), self.embedding_dropout, self.training)
        parts = [e_BD, numbers_BK.to(e_BD.dtype)]
        if self.reads_raw:
            parts += [codes_BS.to(e_BD.dtype), numbers_BK.to(e_BD.dtype)]
        return torch.cat(parts, dim=1)

    def _logits(
        self, mixed: tuple[Tensor, ...], x_BD: Tensor, codes_BS: Tensor
    ) -> dict[str, Tensor]:
        for domain in self.domains:
            mixed = domain(mixed, x_BD, codes_BS)
        return {
            task: tower(h_BH)
            for task, tower, h_BH in zip(self.tasks, self.towers, mixed, strict=True)
        }


class SeparateModels(nn.Module):
    """One whole model per task with nothing shared, the baseline that shows transfer."""

    def __init__(self, models: Sequence[MultiTaskModel]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, codes_BS: Tensor, numbers_BK: Tensor) -> dict[str, Tensor]:
        """Return the tasks' logits, (B,) each."""
        logits: dict[str, Tensor] = {}
        for model in self.models:
            logits |= model(codes_BS, numbers_BK)
        return logits

    def routed(
        self, codes_BS: Tensor, numbers_BK: Tensor
    ) -> tuple[dict[str, Tensor], tuple[Gated, ...]]:
        """Return the tasks' logits; there is no gate."""
        return self(codes_BS, numbers_BK), ()

    def layers(self) -> tuple[Layer, ...]:
        """Return nothing: there is no gate."""
        return ()
