r"""Two models on the same rows, whatever codes their vocabularies give them.

Shapes: B rows, S code slots, K number columns.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from recsys_moe.datamodule import Split
from recsys_moe.modules.embeddings import first_rows
from recsys_moe.spec import FeatureSpec
from recsys_moe.table_rows import table_moves

MOST_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as an old model reads them and as a new one does.

    Attributes:
        old_codes: int32 (B, S).
        new_codes: int32 (B, S).
        numbers: (B, K).
    """

    old_codes: Tensor
    new_codes: Tensor
    numbers: Tensor

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.numbers)

    def where(self, mask_B: Tensor) -> "Rows":
        """Return some of the rows."""
        return Rows(self.old_codes[mask_B], self.new_codes[mask_B], self.numbers[mask_B])


def sample(before_spec: FeatureSpec, run: Path, data: Split, features: Path) -> Rows:
    """Return the first validation rows all of whose values the run's model knows."""
    batch = data.batch(slice(0, min(MOST_ROWS, data.num_rows)))
    spec, old_starts, starts = data.spec, first_rows(before_spec), first_rows(data.spec)
    old_of: dict[str, Any] = {}
    for move in table_moves(before_spec, run, spec, features):
        codes = np.full(move.num_rows, -1, np.int64)
        old = move.old_rows - old_starts.get(move.table, 0)
        codes[move.new_rows - starts[move.table]] = old
        old_of[move.table] = torch.from_numpy(codes)
    tables = [feature.table for feature in spec.code_features for _ in range(feature.num_slots)]
    columns = [old_of[table][batch.codes[:, slot].long()] for slot, table in enumerate(tables)]
    old_BS = torch.stack(columns, dim=1).to(torch.int32) if columns else batch.codes
    rows = Rows(old_BS, batch.codes, batch.numbers)
    return rows.where((old_BS >= 0).all(1))


@torch.no_grad()
def compare(old: nn.Module, new: nn.Module, rows: Rows) -> dict[str, float]:
    """Return by the old model's tasks the largest difference of a logit; 0 is bit for bit."""
    old, new = old.eval(), new.eval()
    before = cast(dict[str, Tensor], old(rows.old_codes, rows.numbers))
    after = cast(dict[str, Tensor], new(rows.new_codes, rows.numbers))
    found = {}
    for task, logit_B in before.items():
        same = torch.equal(logit_B, after[task])
        found[task] = 0.0 if same else float((logit_B - after[task]).abs().max())
    return found
