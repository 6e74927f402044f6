"""Six ways to compute sparse experts, written as they are commonly found, and a case to time.

Shapes: N rows, D input and output width, H hidden width, E experts, K slots a row, R = N K, C rows
an expert, S = E C places.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys_moe.moe.banks import Bank, MLPBank
from recsys_moe.moe.banks_gated import SwiGLUBank
from recsys_moe.moe.routing import Routing

KINDS = ("mlp", "mlp with biases", "swiglu")


class Size(NamedTuple):
    """One setting: rows, width, hidden width, experts, slots."""

    N: int
    D: int
    H: int
    E: int
    K: int

    def __str__(self) -> str:
        return " ".join(map(str, self))


@dataclass(frozen=True)
class Case:
    """The tensors of one setting."""

    bank: Bank
    x_ND: Tensor  # noqa: N815
    routing: Routing

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, weights and index."""
        assert self.routing.index is not None
        return self.x_ND, self.routing.weights, self.routing.index

    def expert(self, e: int, x: Tensor) -> Tensor:
        """One expert as a tutorial has it: its parameters indexed out of the stack."""
        one = [None if p is None else p[e] for p in self.bank.stacked()]
        return self.bank.body(x, one, F.linear)


def mask_loop(case: Case) -> Tensor:
    x_ND, weights_NK, index_NK = case.parts
    y_ND = torch.zeros_like(x_ND)
    for e in range(case.bank.num_experts):
        mask_NK = index_NK == e
        rows_N = mask_NK.any(1)
        if not rows_N.any():
            continue
        weight_N = (weights_NK * mask_NK).sum(1)[rows_N]
        y_ND[rows_N] += weight_N.unsqueeze(1).to(x_ND.dtype) * case.expert(e, x_ND[rows_N])
    return y_ND


def where_loop(case: Case) -> Tensor:
    x_ND, weights_NK, index_NK = case.parts
    y_ND = torch.zeros_like(x_ND)
    for e in range(case.bank.num_experts):
        row, slot = torch.where(index_NK == e)
        out = weights_NK[row, slot].unsqueeze(1).to(x_ND.dtype) * case.expert(e, x_ND[row])
        y_ND.index_add_(0, row, out)
    return y_ND


def dense_mask(case: Case) -> Tensor:
    x_ND, _, _ = case.parts
    expanded_END = x_ND.expand(case.bank.num_experts, *x_ND.shape)
    h_END = case.bank.body(expanded_END, case.bank.stacked(), _bmm)
    return torch.einsum("ne,end->nd", case.routing.dense().to(x_ND.dtype), h_END)


def sort_split(case: Case) -> Tensor:
    x_ND, weights_NK, index_NK = case.parts
    order_R, row_R, counts_E = _sorted(case)
    sizes = counts_E.tolist()
    stacked = [itertools.repeat(None) if p is None else p.unbind(0) for p in case.bank.stacked()]
    parts = zip(x_ND[row_R].split(sizes), zip(*stacked, strict=False), strict=False)
    h_RD = torch.cat([case.bank.body(x, one, F.linear) for x, one in parts])
    return _back(h_RD, weights_NK, order_R, index_NK.shape)


def sort_grouped(case: Case) -> Tensor:
    x_ND, weights_NK, index_NK = case.parts
    order_R, row_R, counts_E = _sorted(case)
    offsets_E = counts_E.cumsum(0).to(torch.int32)
    expert_R = index_NK.flatten()[order_R]

    def linear(x: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None) -> Tensor:
        y = F.grouped_mm(x, weight_EOI.transpose(1, 2), offs=offsets_E)
        return y if bias_EO is None else y + bias_EO[expert_R]

    h_RD = case.bank.body(x_ND[row_R], case.bank.stacked(), linear)
    return _back(h_RD, weights_NK, order_R, index_NK.shape)


def capacity_bmm(case: Case) -> Tensor:
    x_ND, weights_NK, index_NK = case.parts
    order_R, row_R, counts_E = _sorted(case)
    largest = int(counts_E.max())  # dropless
    expert_R = index_NK.flatten()[order_R]
    place_R = (
        torch.arange(len(row_R), device=row_R.device) - (counts_E.cumsum(0) - counts_E)[expert_R]
    )
    place_R = expert_R * largest + place_R
    x_SD = x_ND.new_zeros(case.bank.num_experts * largest, x_ND.shape[1])
    x_SD = x_SD.index_copy(0, place_R, x_ND[row_R])
    x_ECD = x_SD.view(case.bank.num_experts, largest, -1)
    h_RD = case.bank.body(x_ECD, case.bank.stacked(), _bmm).flatten(0, 1)[place_R]
    return _back(h_RD, weights_NK, order_R, index_NK.shape)


FORMS: dict[str, Callable[[Case], Tensor]] = {
    "mask loop": mask_loop,
    "where loop": where_loop,
    "dense+mask bmm": dense_mask,
    "sort+split": sort_split,
    "sort+grouped_mm": sort_grouped,
    "capacity bmm": capacity_bmm,
}


def make_case(size: Size, kind: str, device: str) -> Case:
    """Draw rows and a routing whose experts are about equally loaded."""
    with torch.device(device):
        if kind == "swiglu":
            bank: Bank = SwiGLUBank(size.E, size.D, size.H)
        else:
            widths = [size.H, size.D]
            bias = kind == "mlp with biases"
            bank = MLPBank(
                size.E, size.D, widths, activation="silu", bias=bias, last_activation=False
            )
        bank = bank.to(dtype_of(device))
        x_ND = torch.randn(size.N, size.D, dtype=dtype_of(device), requires_grad=True)
        logits_NE = torch.randn(size.N, size.E)
        probs_NE = logits_NE.softmax(1)
        weights_NK, index_NK = probs_NE.topk(size.K, dim=1)
        weights_NK = (weights_NK / weights_NK.sum(1, keepdim=True)).requires_grad_()
    return Case(bank, x_ND, Routing(weights_NK, index_NK, probs_NE, logits_NE))


def dtype_of(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def _bmm(x_ECI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None) -> Tensor:
    y_ECO = x_ECI @ weight_EOI.transpose(1, 2)
    return y_ECO if bias_EO is None else y_ECO + bias_EO.unsqueeze(1)


def _sorted(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    _, _, index_NK = case.parts
    flat_R = index_NK.flatten()
    order_R = flat_R.argsort(stable=True)
    counts_E = torch.zeros(case.bank.num_experts, dtype=torch.int64, device=flat_R.device)
    counts_E = counts_E.scatter_add(0, flat_R, torch.ones_like(flat_R))
    return order_R, order_R // index_NK.shape[1], counts_E


def _back(h_RD: Tensor, weights_NK: Tensor, order_R: Tensor, shape: torch.Size) -> Tensor:
    inverse_R = torch.empty_like(order_R)
    inverse_R[order_R] = torch.arange(len(order_R), device=order_R.device)
    h_NKD = h_RD[inverse_R].view(*shape, -1)
    return (h_NKD * weights_NK.unsqueeze(-1).to(h_NKD.dtype)).sum(1)
