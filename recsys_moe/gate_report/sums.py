r"""Add up what the gates of one layer decide, over as many rows as there are.

Shapes: N rows, G gates, E experts, S segments of a column, Q steps of a histogram.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_moe.moe.routing import Routing

STEPS = 1000


class LayerSums:
    """Sums over rows of the weights of G gates over E experts, by segment of some columns too.

    Nothing here grows with the rows. All sums are float64.

    Attributes:
        rows: The rows so far.
        weights_GE, squares_GE: Sums of weights and of their squares.
        used_GE, largest_GE: Rows that use an expert; rows in which its weight is the largest.
        histogram_GEQ: Rows by weight, in steps of `top_G` / 1000.
        top_G: The end of each gate's histogram: 1, or more where a row's weights sum to more.
        active: Sum over rows of the experts that at least one gate uses.
        rows_S, weights_SGE, largest_GSE: The same by segment, one entry a column.
    """

    def __init__(
        self, gates: Sequence[str], visible: Sequence[Sequence[bool]], sizes: Sequence[int]
    ) -> None:
        """Start with nothing.

        Args:
            gates: The gates' names, G.
            visible: (G, E), the experts that a gate sees.
            sizes: The number of segments of each column.
        """
        self.gates, self.visible_GE = tuple(gates), torch.tensor([list(row) for row in visible])
        num_gates, num_experts = self.visible_GE.shape
        self.shape, self.rows, self.active = (num_gates, num_experts), 0, 0.0

        def zeros(*size: int) -> Tensor:
            return torch.zeros(*size, dtype=torch.float64)

        self.weights_GE, self.squares_GE = zeros(*self.shape), zeros(*self.shape)
        self.used_GE, self.largest_GE = zeros(*self.shape), zeros(*self.shape)
        self.histogram_GEQ, self.top_G = zeros(*self.shape, STEPS + 1), torch.ones(num_gates)
        self.rows_S = [zeros(size) for size in sizes]
        self.weights_SGE = [zeros(size, *self.shape) for size in sizes]
        self.largest_GSE = [zeros(num_gates, size, num_experts) for size in sizes]

    @torch.no_grad()
    def add(self, routings: Mapping[str, Routing], codes: Sequence[NDArray[np.int64]]) -> None:
        """Add a batch: each gate's routing, and each column's segment of each row, (N,)."""
        decided = [routings[gate] for gate in self.gates]
        w_NGE = torch.stack([routing.dense() for routing in decided], dim=1).double()
        used_NGE = torch.stack([r.chosen() for r in decided], dim=1) & self.visible_GE
        if not self.rows:
            self.top_G = (w_NGE.sum(2).amax(0) - 1e-3).ceil().clamp(min=1)
        self.rows += len(w_NGE)
        self.weights_GE += w_NGE.sum(0)
        self.squares_GE += w_NGE.square().sum(0)
        self.used_GE += used_NGE.sum(0)
        self.active += float(used_NGE.any(1).sum())
        self._add_histogram(w_NGE)
        largest_NG, some_NG = w_NGE.argmax(2), w_NGE.sum(2) > 0
        for g in range(self.shape[0]):
            self.largest_GE[g] += _counts(largest_NG[some_NG[:, g], g], self.shape[1])
        for column, codes_N in enumerate(map(torch.from_numpy, codes)):
            size = len(self.rows_S[column])
            self.rows_S[column] += _counts(codes_N, size)
            self.weights_SGE[column].index_add_(0, codes_N, w_NGE)
            for g in range(self.shape[0]):
                pair_N = (codes_N * self.shape[1] + largest_NG[:, g])[some_NG[:, g]]
                counts = _counts(pair_N, size * self.shape[1])
                self.largest_GSE[column][g] += counts.view(size, -1)

    def _add_histogram(self, w_NGE: Tensor) -> None:
        steps = STEPS + 1
        step_NGE = (w_NGE / self.top_G[:, None] * STEPS).round().long().clamp(0, STEPS)
        first_GE = torch.arange(math.prod(self.shape)).view(self.shape) * steps
        counts = _counts((step_NGE + first_GE).flatten(), math.prod(self.shape) * steps)
        self.histogram_GEQ += counts.view(*self.shape, steps)


def _counts(numbers: Tensor, most: int) -> Tensor:
    return torch.bincount(numbers, minlength=most).double()
