r"""Where each row goes and how its experts' outputs come back, without atomics.

Both ways are plain gathers, forward and backward, because the permutation and its inverse are both
at hand: the order of every sum is fixed, and nothing waits for the device.

Shapes: N rows, K slots a row, E experts, S places for a row at an expert (N K of them sorted by
expert, or E C of them with capacity C), D input width, O output width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys_moe.moe.routing import Routing


@dataclass(frozen=True, slots=True)
class Plan:
    """Which slot of which row stands at each place, and the inverse.

    Attributes:
        slot_S: int64, the slot (n K + k) at each place.
        place_NK: int64, the place of each slot.
        ends_E: int32, the place after the last filled one of each expert, sorted; for capacity,
            which leaves places empty, that of the sorted slots before it.
        filled_S: bool, the places that hold a slot; None where all do.
        taken_NK: bool, the slots that have a place; None where all do.
    """

    slot_S: Tensor  # noqa: N815
    place_NK: Tensor  # noqa: N815
    ends_E: Tensor  # noqa: N815
    filled_S: Tensor | None = None  # noqa: N815
    taken_NK: Tensor | None = None  # noqa: N815


def sort_rows(routing: Routing) -> Plan:
    """Sort the slots by expert, rows in order within each; unused slots come after all experts."""
    index_NK, kept_NK, num_experts = routing.index, routing.kept, routing.num_experts
    assert index_NK is not None
    key_NK = index_NK if kept_NK is None else torch.where(kept_NK, index_NK, num_experts)
    # one byte sorts twice as fast as eight
    narrow = torch.uint8 if num_experts < 256 else torch.int32
    sorted_S, slot_S = key_NK.flatten().to(narrow).sort(stable=True)
    expert_E = torch.arange(num_experts, device=index_NK.device, dtype=narrow)
    ends_E = torch.searchsorted(sorted_S, expert_E, right=True, out_int32=True)
    here_S = torch.arange(slot_S.shape[0], device=slot_S.device)
    place_NK = torch.empty_like(slot_S).scatter_(0, slot_S, here_S).view(index_NK.shape)
    if kept_NK is None:
        return Plan(slot_S, place_NK, ends_E)
    return Plan(slot_S, place_NK, ends_E, here_S < ends_E[-1], kept_NK)


def with_capacity(plan: Plan, capacity: int) -> Plan:
    """Give every expert `capacity` places; rows that come later in the batch are dropped first."""
    num_slots, num_experts = plan.slot_S.shape[0], plan.ends_E.shape[0]
    ends_E = plan.ends_E.to(torch.int64)
    starts_E = F.pad(ends_E[:-1], (1, 0))
    counts_E = ends_E - starts_E
    rank_C = torch.arange(capacity, device=ends_E.device)
    filled_EC = rank_C < counts_E.unsqueeze(1)
    source_S = (starts_E.unsqueeze(1) + rank_C).clamp(max=max(num_slots - 1, 0)).flatten()
    here_S = torch.arange(num_slots, device=counts_E.device)
    expert_S = torch.searchsorted(ends_E, here_S, right=True).clamp(max=num_experts - 1)
    rank_S = here_S - starts_E[expert_S]
    rank_NK, expert_NK = rank_S[plan.place_NK], expert_S[plan.place_NK]
    taken_NK = rank_NK < capacity
    taken_NK = taken_NK if plan.taken_NK is None else taken_NK & plan.taken_NK
    place_NK = expert_NK * capacity + rank_NK.clamp(max=max(capacity - 1, 0))
    return Plan(
        plan.slot_S[source_S],
        place_NK,
        plan.ends_E,
        filled_EC.flatten(),
        taken_NK,
    )


def take(x_ND: Tensor, plan: Plan) -> Tensor:
    """Bring each row to its places, (S, D)."""
    rows_SD: Tensor = _Take.apply(  # type: ignore[no-untyped-call]
        x_ND, plan.slot_S, plan.place_NK, plan.taken_NK
    )
    return rows_SD


def mix_back(rows_SO: Tensor, weights_NK: Tensor, plan: Plan) -> Tensor:
    r"""Sum the experts' outputs of each row, (N, O), accumulated in float32 or wider.

    .. math:: y_n = \sum_k w_{nk} \, rows_{place(n, k)}
    """
    y_NO: Tensor = _MixBack.apply(  # type: ignore[no-untyped-call]
        rows_SO, weights_NK, plan.slot_S, plan.place_NK, plan.filled_S, plan.taken_NK
    )
    return y_NO


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        slot_S: Tensor,
        place_NK: Tensor,
        taken_NK: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(place_NK, taken_NK)
        return x_ND.index_select(0, _row(slot_S, place_NK.shape[1]))

    @staticmethod
    def backward(ctx: Any, grad_SD: Tensor) -> tuple[Tensor | None, ...]:
        place_NK, taken_NK = ctx.saved_tensors
        grad_SD = grad_SD.index_select(0, place_NK.flatten())
        if place_NK.shape[1] == 1 and taken_NK is None:
            return grad_SD, None, None, None
        grad_NKD = grad_SD.view(*place_NK.shape, grad_SD.shape[1])
        if taken_NK is not None:
            grad_NKD = torch.where(taken_NK.unsqueeze(-1), grad_NKD, 0)
        return grad_NKD.sum(1, dtype=_wide(grad_SD)).to(grad_SD.dtype), None, None, None


class _MixBack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_SO: Tensor,
        weights_NK: Tensor,
        slot_S: Tensor,
        place_NK: Tensor,
        filled_S: Tensor | None,
        taken_NK: Tensor | None,
    ) -> Tensor:
        if filled_S is not None:
            rows_SO = torch.where(filled_S.unsqueeze(1), rows_SO, 0)
        if taken_NK is not None:
            weights_NK = torch.where(taken_NK, weights_NK, 0)
        ctx.save_for_backward(rows_SO, weights_NK, slot_S, place_NK, filled_S, taken_NK)
        back_SO = rows_SO.index_select(0, place_NK.flatten())
        weights_NK = weights_NK.to(rows_SO.dtype)
        if place_NK.shape[1] == 1:
            return back_SO * weights_NK
        back_NKO = back_SO.view(*place_NK.shape, rows_SO.shape[1])
        if place_NK.shape[1] == 2:  # faster than so small a product
            return (back_NKO * weights_NK.unsqueeze(2)).sum(1)
        return torch.bmm(weights_NK.unsqueeze(1), back_NKO).squeeze(1)

    @staticmethod
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        rows_SO, weights_NK, slot_S, place_NK, filled_S, taken_NK = ctx.saved_tensors
        grad_SO = grad_NO.index_select(0, _row(slot_S, place_NK.shape[1]))
        dots_S = torch.linalg.vecdot(rows_SO, grad_SO)
        dots_NK = dots_S[place_NK].to(weights_NK.dtype)
        if taken_NK is not None:
            dots_NK = torch.where(taken_NK, dots_NK, 0)
        weights_S1 = weights_NK.flatten()[slot_S].unsqueeze(1).to(grad_SO.dtype)
        grad_SO = grad_SO * weights_S1
        if filled_S is not None:
            grad_SO = torch.where(filled_S.unsqueeze(1), grad_SO, 0)
        return grad_SO, dots_NK, None, None, None, None


def _row(slot_S: Tensor, num_slots: int) -> Tensor:
    return slot_S if num_slots == 1 else slot_S // num_slots


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
