r"""One embedding module for all features, whatever tables they share.

Shapes: B batch, S code slots, F features with codes, d embedding width, V codes of all tables.
"""

from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_moe.errors import RequestError
from recsys_moe.spec import PAD, FeatureSpec


def first_rows(spec: FeatureSpec) -> dict[str, int]:
    """Return the row of each table's code 0 in the one matrix that holds them all."""
    starts = accumulate((table.num_codes for table in spec.tables), initial=0)
    return dict(zip([table.name for table in spec.tables], starts, strict=False))


class Embeddings(nn.Module):
    """Look up all code slots at once in one matrix that holds every table, and pool the lists.

    A list feature is the mean over its slots that are not padding; an empty list is zero.
    """

    def __init__(self, spec: FeatureSpec, dim: int, *, init_std: float = 0.05) -> None:
        super().__init__()
        sizes = [table.num_codes for table in spec.tables]
        start = first_rows(spec)
        if sum(sizes) >= 2**31:
            raise RequestError(
                "tables",
                wanted="fewer than 2^31 rows in all (int32 offsets)",
                got=f"{sum(sizes):,}",
            )
        features = spec.code_features
        self.dim = dim
        self.bounds = tuple(accumulate((feature.num_slots for feature in features), initial=0))
        self.output_width = dim * len(features)
        self.weight_Vd = nn.Parameter(torch.empty(sum(sizes), dim).normal_(std=init_std))
        offsets = [start[feature.table] for feature in features for _ in range(feature.num_slots)]
        self.register_buffer(
            "offsets_S", torch.tensor(offsets, dtype=torch.int32), persistent=False
        )

    def forward(self, codes_BS: Tensor) -> Tensor:
        """Return the features' embeddings side by side, (B, F * d), from int32 codes."""
        e_BSd = F.embedding(codes_BS + self.get_buffer("offsets_S"), self.weight_Vd)
        if self.bounds[-1] * self.dim == self.output_width:  # every feature has one slot
            return e_BSd.flatten(1)
        pooled = []
        for first, last in pairwise(self.bounds):
            if last - first == 1:
                pooled.append(e_BSd[:, first])
                continue
            present_BL1 = (codes_BS[:, first:last] != PAD).unsqueeze(-1).to(e_BSd.dtype)
            total_Bd = (e_BSd[:, first:last] * present_BL1).sum(1)
            pooled.append(total_Bd / present_BL1.sum(1).clamp(min=1))
        return torch.cat(pooled, dim=1)
