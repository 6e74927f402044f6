"""Some impressions as the model and the losses read them."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Features, labels, their weights and the rows' weights of B impressions.

    `codes` is int32 (B, slots), `numbers` float32 (B, numbers); per task, `labels` is float32 (B,)
    and `known` is how much the label counts, 0 where it is unknown; `weights` is float32 (B,).
    """

    codes: Tensor
    numbers: Tensor
    labels: dict[str, Tensor]
    known: dict[str, Tensor]
    weights: Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return the batch on a device; itself if it is there already."""
        if self.codes.device == torch.device(device):
            return self

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return type(self)(
            codes=move(self.codes),
            numbers=move(self.numbers),
            labels={task: move(label) for task, label in self.labels.items()},
            known={task: move(mask) for task, mask in self.known.items()},
            weights=move(self.weights),
        )
