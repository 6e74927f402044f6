r"""Mixtures of the experts that rows use and no others, in a form that ONNX can hold.

.. math:: y^t_n = \sum_e w^t_{ne} \, f_e(x_n)

Expert after expert: the rows that any of the routings sends to it are found, computed once, and
added to each routing's output with that routing's weight. Nothing is sorted and no shape but the
number of found rows depends on values, so that `torch.onnx.export` writes one NonZero an expert.
`dispatch` has the forms for training.

Shapes: N rows, R rows of an expert, E experts, T routings, D input width, O output width.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_moe.errors import RequestError
from recsys_moe.moe.banks import Bank
from recsys_moe.moe.banks_hetero import HeteroBank, Spans
from recsys_moe.moe.routing import Routing

Expert = Callable[[Tensor], Tensor]


def unrolled(
    x_ND: Tensor, routings: Sequence[Routing], bank: Bank | HeteroBank
) -> tuple[Tensor, ...]:
    """Return one mixture (N, O) for each routing over the same bank.

    Args:
        x_ND: The rows.
        routings: Decisions over all experts of the bank; a gate that sees only some has weight 0
            at the others.
        bank: The experts. Each is computed once, on the rows that some routing gives a weight.

    Raises:
        RequestError: A routing over another number of experts, or rows of another width.
    """
    return unrolled_weights(x_ND, [routing.dense() for routing in routings], bank)


def unrolled_weights(
    x_ND: Tensor, weights: Sequence[Tensor], bank: Bank | HeteroBank
) -> tuple[Tensor, ...]:
    """Return what `unrolled` does, from a weight per expert (N, E), 0 where it is not used."""
    sizes = {(x_ND.shape[-1], weights_NE.shape[-1]) for weights_NE in weights}
    if sizes != {(bank.input_width, bank.num_experts)}:
        raise RequestError(
            "dispatch",
            wanted=f"rows of {bank.input_width} numbers and {bank.num_experts} experts",
            got=" and ".join(f"{width}, {experts}" for width, experts in sorted(sizes)) or "none",
        )
    # one addition an expert: its rows are all different, so that a runtime may add in parallel
    # (ONNX Runtime's ScatterND with several threads loses additions to one row)
    weights_NTE = torch.stack(list(weights), dim=1)
    used_NE = (weights_NTE != 0).any(1)
    y_NTO = x_ND.new_zeros(x_ND.shape[0], len(weights), bank.output_width)
    each = zip(experts_of(bank), used_NE.unbind(1), weights_NTE.unbind(2), strict=True)
    for expert, used_N, weights_NT in each:
        row_R = torch.nonzero(used_N).squeeze(1)
        out_R1O = expert(x_ND.index_select(0, row_R)).unsqueeze(1)
        weights_RT1 = weights_NT.index_select(0, row_R).unsqueeze(2)
        weighted_RTO = weights_RT1.to(out_R1O.dtype) * out_R1O
        y_NTO = y_NTO.index_add(0, row_R, weighted_RTO.to(y_NTO.dtype))
    return y_NTO.unbind(1)


def experts_of(bank: Bank | HeteroBank) -> list[Expert]:
    """Return a bank's experts one by one, each from rows (R, D) to its outputs (R, O)."""
    if isinstance(bank, HeteroBank):
        return [
            partial(_in_part, expert, project, spans)
            for inner, project, spans in bank.parts()
            for expert in experts_of(inner)
        ]
    if next(bank.parameters(), None) is None:  # a fitted model: there is nothing to take apart
        return [partial(_whole, bank, number) for number in range(bank.num_experts)]
    # unbind once: each indexing of a stacked parameter would fill a whole zero gradient
    unbound = [_unbound(parameter, bank.num_experts) for parameter in bank.stacked()]
    return [partial(_own, bank, own) for own in zip(*unbound, strict=True)]


def _own(bank: Bank, parameters: Sequence[Tensor | None], rows_RD: Tensor) -> Tensor:
    return bank.body(rows_RD, parameters, F.linear)


def _whole(bank: Bank, number: int, rows_RD: Tensor) -> Tensor:
    out_RO: Tensor = bank(rows_RD)[:, number]
    return out_RO


def _in_part(expert: Expert, project: nn.Module, spans: Spans | None, rows_RD: Tensor) -> Tensor:
    if spans is not None:
        rows_RD = torch.cat([rows_RD[:, start:stop] for start, stop in spans], dim=1)
    out_RO: Tensor = project(expert(rows_RD))
    return out_RO


def _unbound(parameter: Tensor | None, num_experts: int) -> Sequence[Tensor | None]:
    return [None] * num_experts if parameter is None else parameter.unbind(0)
