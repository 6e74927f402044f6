r"""Send rows to their experts and sum what comes back: four forms of one function.

.. math:: y_n = \sum_{k} w_{nk} \, f_{i_{nk}}(x_n)

=========  ==================================================================================
form       what it does
=========  ==================================================================================
dense      every expert on every row, then one product with the weights; any device and type
split      rows sorted by expert, one product an expert; reads the counts on the host
grouped    rows sorted by expert, `grouped_mm`; not in float64; on CUDA made for bfloat16
capacity   as many rows for each expert, the rest dropped in row order (GShard; Lepikhin et
           al., 2020, algorithm 1)
=========  ==================================================================================

Shapes: N rows, E experts, K slots a row, S places, C rows an expert, D input width, O output width.
"""

import math
from typing import Protocol

from torch import Tensor

from recsys_moe.errors import RequestError
from recsys_moe.moe.choice import Sized, choose
from recsys_moe.moe.dispatch_rows import mix_back, sort_rows, take, with_capacity
from recsys_moe.moe.routing import Routing

FORMS = ("dense", "split", "grouped", "capacity")


class Experts(Sized, Protocol):
    """What dispatch asks of a bank; `Bank` and `HeteroBank` have it."""

    input_width: int
    output_width: int

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Return every expert's output on every row, (N, E, O)."""

    def until(self, rows_RD: Tensor, ends_E: Tensor, *, how: str = "auto") -> Tensor:
        """Return each sorted row's own expert's output, (R, O)."""

    def batched(self, x_ECD: Tensor) -> Tensor:
        """Return each expert's output on its own C rows, (E, C, O)."""


def combine(
    x_ND: Tensor,
    routing: Routing,
    bank: Experts,
    *,
    how: str = "auto",
    capacity_factor: float = 1.25,
) -> Tensor:
    """Return the weighted sum of each row's experts, (N, O).

    Args:
        x_ND: The rows.
        routing: Which experts each goes to, and their weights. A dense one is computed densely.
        bank: The experts.
        how: `dense`, `split`, `grouped`, `capacity`, or `auto`: the measured best (`choice.py`).
            `auto` never drops a row and never waits for the device.
        capacity_factor: For `capacity` alone: each expert takes at most this many times an equal
            share of the slots, rounded up; see `dropped_share`.

    Raises:
        RequestError: An unknown form, one that the routing or the type does not allow, or experts
            that do not match the routing.
    """
    if routing.num_experts != bank.num_experts or x_ND.shape[-1] != bank.input_width:
        raise RequestError(
            "dispatch",
            wanted=f"{bank.num_experts} experts of input width {bank.input_width}",
            got=f"{routing.num_experts} and {x_ND.shape[-1]}",
        )
    if how not in ("auto", *FORMS):
        raise RequestError(
            "dispatch", wanted=", ".join(("auto", *FORMS)), got=repr(how), choices=FORMS
        )
    if how == "auto":
        how = "dense" if routing.index is None else choose(x_ND, routing, bank)
    if how == "dense":
        return dense(x_ND, routing, bank)
    if routing.index is None:
        raise RequestError("dispatch", wanted="'dense' for a dense routing", got=repr(how))
    if how == "capacity":
        return fixed_capacity(x_ND, routing, bank, capacity_factor)
    return by_expert(x_ND, routing, bank, how)


def dense(x_ND: Tensor, routing: Routing, bank: Experts) -> Tensor:
    """Compute all experts on all rows, then gather: one product with the weights (N, E)."""
    h_NEO = bank(x_ND)
    return (routing.dense().to(h_NEO.dtype).unsqueeze(1) @ h_NEO).squeeze(1)


def by_expert(x_ND: Tensor, routing: Routing, bank: Experts, how: str) -> Tensor:
    """Sort the rows by expert, compute each expert on its own, and put them back in order."""
    plan = sort_rows(routing)
    rows_SO = bank.until(take(x_ND, plan), plan.ends_E, how=how)
    return mix_back(rows_SO, routing.weights, plan)


def fixed_capacity(x_ND: Tensor, routing: Routing, bank: Experts, capacity_factor: float) -> Tensor:
    """Give every expert the same number of places; a slot that finds none adds nothing."""
    places = capacity(routing, capacity_factor)
    plan = with_capacity(sort_rows(routing), places)
    x_ECD = take(x_ND, plan).view(bank.num_experts, places, x_ND.shape[1])
    return mix_back(bank.batched(x_ECD).flatten(0, 1), routing.weights, plan)


def capacity(routing: Routing, capacity_factor: float) -> int:
    """Return C, an expert's places: ceil(factor N K / E), at most N.

    Raises:
        RequestError: A factor that is not above 0.
    """
    if not capacity_factor > 0:
        raise RequestError("capacity_factor", wanted="above 0", got=repr(capacity_factor))
    num_rows, num_slots = routing.weights.shape
    return min(num_rows, math.ceil(capacity_factor * num_rows * num_slots / routing.num_experts))


def dropped_share(routing: Routing, capacity_factor: float) -> Tensor:
    """Return the share of the used slots that `capacity` drops, a float32 scalar on the device."""
    counts_E = sort_rows(routing).ends_E.diff(prepend=routing.weights.new_zeros(1).int())
    over_E = (counts_E - capacity(routing, capacity_factor)).clamp(min=0)
    return over_E.sum().float() / counts_E.sum().clamp(min=1)
