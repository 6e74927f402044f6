r"""Several gates over several banks: each expert computed once where it can be.

.. math:: y_g = \sum_{s \in S_g} \sum_{e \in s} w_{g, (s, e)} \, f_{s, e}(x_s)

A gate's routing numbers the experts of the sources that it sees, :math:`S_g`, through. A source is
computed densely once for all its gates, or sparsely for each gate.

Shapes: N rows, E experts of a source, D its input width, O output width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys_moe.moe.banks import Bank
from recsys_moe.moe.banks_hetero import HeteroBank
from recsys_moe.moe.choice import choose
from recsys_moe.moe.dispatch import combine
from recsys_moe.moe.routing import Routing
from recsys_moe.moe.unrolled import unrolled


@dataclass(frozen=True, slots=True)
class Source:
    """A bank of experts and the rows that it reads, x (N, D)."""

    bank: Bank | HeteroBank
    x: Tensor


def mix_sources(
    sources: Sequence[Source],
    routings: Sequence[Routing],
    sees: Sequence[Sequence[int]],
    *,
    how: str = "auto",
) -> list[Tensor]:
    """Return each gate's weighted sum of its experts, (N, O).

    Args:
        sources: The banks and their rows.
        routings: What each gate decided.
        sees: For each gate the numbers of the sources that it mixes, in the order in which its
            routing numbers their experts.
        how: As in `dispatch.combine`; also `where`, the sparse form of exported graphs, in which a
            dense gate's experts are computed densely all the same.
    """
    parts = [_parts(routing, seen, sources) for routing, seen in zip(routings, sees, strict=True)]
    users = [[part[s] for part in parts if s in part] for s in range(len(sources))]
    forms = [_form(source, mine, how) for source, mine in zip(sources, users, strict=True)]
    dense = {s: sources[s].bank(sources[s].x) for s, form in enumerate(forms) if form == "dense"}
    alone = {
        s: iter(unrolled(sources[s].x, users[s], sources[s].bank))
        for s, form in enumerate(forms)
        if form == "where"
    }
    mixed = []
    for routing, seen, part in zip(routings, sees, parts, strict=True):
        if all(s in dense for s in seen):
            h_NEO = torch.cat([dense[s] for s in seen], dim=1) if len(seen) > 1 else dense[seen[0]]
            mixed.append(weighted_sum(routing.dense(), h_NEO))
            continue
        terms = []
        for s in seen:
            if s in dense:
                terms.append(weighted_sum(part[s].dense(), dense[s]))
            elif s in alone:
                terms.append(next(alone[s]))
            else:
                source = sources[s]
                terms.append(combine(source.x, part[s], source.bank, how=forms[s]))
        mixed.append(torch.stack(terms).sum(0) if len(terms) > 1 else terms[0])
    return mixed


def weighted_sum(weights_NE: Tensor, h_NEO: Tensor) -> Tensor:
    """Return the experts' weighted sum, (N, O), in their own type."""
    return (weights_NE.to(h_NEO.dtype).unsqueeze(1) @ h_NEO).squeeze(1)


def _parts(routing: Routing, seen: Sequence[int], sources: Sequence[Source]) -> dict[int, Routing]:
    """Return what a routing says of each source that it sees."""
    found, first = {}, 0
    for s in seen:
        size = sources[s].bank.num_experts
        found[s] = routing.part(first, size)
        first += size
    return found


def _form(source: Source, users: Sequence[Routing], how: str) -> str:
    """Return how a source is computed: `dense`, `where`, or a form of `combine`."""
    if any(routing.index is None for routing in users):
        return "dense"
    if how != "auto":
        return how
    slots = sum(routing.weights.shape[-1] for routing in users)
    if 4 * slots >= 3 * source.bank.num_experts:
        return "dense"  # several gates: one dense pass serves all
    return choose(source.x, users[0], source.bank)
