r"""What a router decides: which experts see a row, and how much each counts.

Shapes: N rows, E experts, K slots of a row, J single-expert selectors.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils import _pytree


@dataclass(frozen=True, slots=True)
class Routing:
    r"""One router's decision for a batch.

    A sparse routing lists K experts a row in `index`; a dense one has `index` None and one weight
    per expert. Everything is float32, or float64 where the router is.

    .. math:: y_n = \sum_{k} \mathrm{weights}_{nk} \, f_{\mathrm{index}_{nk}}(x_n)

    Attributes:
        weights: Sparse (N, K), dense (N, E). A masked row's are 0.
        index: int64 (N, K), the K experts of a row, all different; None for a dense routing.
        probs: (N, E), the router's scores of all experts before the selection, as a distribution.
        logits: (N, E), what `probs` come from; -inf at experts that the router may not see. With
            noise these are the noisy ones, the ones that chose.
        kept: bool, of the shape of `weights`: the slots that are used; an unused slot has weight 0
            and the index of some expert. None where all are used.
        clean: (N, E), the logits without noise, and
        spread: (N, E), the noise's standard deviation; None where the router added none.
        selectors: (N, J, E), the single-expert selectors of DSelect-k; None elsewhere.
    """

    weights: Tensor
    index: Tensor | None
    probs: Tensor
    logits: Tensor
    kept: Tensor | None = None
    clean: Tensor | None = None
    spread: Tensor | None = None
    selectors: Tensor | None = None

    @property
    def num_experts(self) -> int:
        """The number of experts, chosen or not."""
        return self.probs.shape[-1]

    def dense(self) -> Tensor:
        """Return one weight per expert, (N, E), 0 where an expert was not chosen."""
        if self.index is None:
            return self.weights
        return torch.zeros_like(self.probs).scatter_add(-1, self.index, self.weights)

    def chosen(self) -> Tensor:
        """Return which experts a row uses, bool (N, E)."""
        kept = torch.ones_like(self.weights, dtype=torch.bool) if self.kept is None else self.kept
        if self.index is None:
            return kept
        used_NE = torch.zeros_like(self.probs)
        return used_NE.scatter_add(-1, self.index, kept.to(used_NE.dtype)) > 0

    def counts(self, mask_N: Tensor | None = None) -> Tensor:
        """Return the rows that each expert gets, float32 (E,), without those that a mask hides."""
        chosen_NE = self.chosen()
        if mask_N is not None:
            chosen_NE = chosen_NE & mask_N.unsqueeze(-1)
        return chosen_NE.sum(0, dtype=torch.float32)

    def masked(self, mask_N: Tensor) -> "Routing":
        """Return the routing with rows sent nowhere where bool `mask_N` is false."""
        mask_N1 = mask_N.unsqueeze(-1)
        kept = mask_N1.expand_as(self.weights) if self.kept is None else self.kept & mask_N1
        return replace(self, weights=self.weights.masked_fill(~mask_N1, 0), kept=kept)

    def part(self, first: int, size: int) -> "Routing":
        """Return what the routing says of `size` experts from `first` on, numbered from 0."""
        if first == 0 and size == self.num_experts:
            return self
        here = slice(first, first + size)
        if self.index is None:
            return Routing(
                weights=self.weights[:, here],
                index=None,
                probs=self.probs[:, here],
                logits=self.logits[:, here],
                kept=None if self.kept is None else self.kept[:, here],
            )
        inside = (self.index >= first) & (self.index < first + size)
        return Routing(
            weights=self.weights.masked_fill(~inside, 0),
            index=(self.index - first).clamp(0, size - 1),
            probs=self.probs[:, here],
            logits=self.logits[:, here],
            kept=inside if self.kept is None else self.kept & inside,
        )

    def placed(self, places_V: Tensor, num_experts: int) -> "Routing":
        """Return the routing numbered anew: expert v becomes `places_V[v]` of `num_experts`."""

        def spread(values_NV: Tensor | None, empty: float) -> Tensor | None:
            if values_NV is None:
                return None
            wide_NE = values_NV.new_full((values_NV.shape[0], num_experts), empty)
            return wide_NE.index_copy(1, places_V, values_NV)

        probs, logits = spread(self.probs, 0.0), spread(self.logits, -torch.inf)
        assert probs is not None
        assert logits is not None
        if self.index is not None:
            return replace(
                self,
                index=places_V[self.index],
                probs=probs,
                logits=logits,
                clean=spread(self.clean, -torch.inf),
                spread=spread(self.spread, 1.0),
            )
        weights = spread(self.weights, 0.0)
        assert weights is not None
        kept = None
        if self.kept is not None:
            kept = torch.zeros_like(weights, dtype=torch.bool).index_copy(1, places_V, self.kept)
        return replace(self, weights=weights, probs=probs, logits=logits, kept=kept)

    def without(self, expert: int) -> "Routing":
        """Return the routing with no weight on an expert, a row's others scaled to the same sum."""
        if self.index is None:
            gone = torch.arange(self.num_experts, device=self.weights.device) == expert
            gone = gone.expand_as(self.weights)
        else:
            gone = self.index == expert
        left = self.weights.masked_fill(gone, 0)
        total_N1, left_N1 = self.weights.sum(-1, keepdim=True), left.sum(-1, keepdim=True)
        scale_N1 = torch.where(left_N1 > 0, total_N1 / left_N1, torch.zeros_like(left_N1))
        return replace(self, weights=left * scale_N1)


_pytree.register_dataclass(Routing)
