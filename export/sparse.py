"""How a graph computes the experts: all on every row, or each on the rows that chose it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import nn

from recsys_moe.errors import RequestError
from recsys_moe.modules.gated import Gated
from recsys_moe.moe.router_union_budget import UnionBudgetRouter
from recsys_moe.spec import FeatureSpec

FORMS = ("auto", "dense", "where")
_EXAMPLE_ROWS = 2


@dataclass(frozen=True, slots=True)
class Experts:
    """What a graph holds of gates and experts.

    Attributes:
        form: `dense`, all experts on every row; `where`, each on the rows that chose it.
        gates: How many gates choose some of their experts.
    """

    form: str = "dense"
    gates: int = 0


def plan(model: nn.Module, spec: FeatureSpec, dispatch: str) -> Experts:
    """Choose how the experts are computed.

    A gate that weighs all experts needs all of them computed. Where every gate chooses, and the
    choices of a row's gates are at most half of the experts, computing the chosen ones is faster
    in ONNX Runtime on a CPU (`benchmarks/moe_onnx.md`).

    Args:
        model: The model that will be exported, in eval mode.
        spec: Its feature spec.
        dispatch: `auto`, `dense` or `where`.

    Raises:
        RequestError: An unknown form, `where` for a model none of whose gates chooses, or a router
            whose decision depends on the other rows of a batch.
    """
    if dispatch not in FORMS:
        wanted = ", ".join(FORMS)
        raise RequestError("dispatch", wanted=wanted, got=repr(dispatch), choices=FORMS)
    gated = _gated(model, spec)
    for each in gated:
        if not each.router.exportable:
            raise RequestError(
                f"{each.layer}, gate {each.gate!r}",
                wanted="a router that decides for each row by itself",
                got=f"{type(each.router).__name__}: {each.router.not_exportable_because}",
            )
    sparse = [each for each in gated if each.routing.index is not None]
    if dispatch == "where" and not sparse:
        raise RequestError(
            "dispatch",
            wanted="auto or dense for a model none of whose gates chooses among its experts",
            got="'where'",
        )
    if dispatch == "auto":
        dispatch = "where" if gated and len(sparse) == len(gated) and _few(gated) else "dense"
    return Experts(dispatch, len(sparse))


def with_form(model: nn.Module, form: str) -> nn.Module:
    """Return a model that computes its experts in a form; parameters and buffers are shared."""
    shared = [*model.parameters(), *model.buffers()]
    new = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    for module in new.modules():
        if isinstance(getattr(module, "dispatch", None), str):
            module.dispatch = form  # type: ignore[assignment]
    return new


def _gated(model: nn.Module, spec: FeatureSpec) -> tuple[Gated, ...]:
    """Return what each gate decides for rows of an example."""
    routed = getattr(model, "routed", None)
    if routed is None:
        return ()
    codes = torch.ones(_EXAMPLE_ROWS, spec.num_slots, dtype=torch.int32)
    with torch.no_grad():
        _, gated = routed(codes, torch.zeros(_EXAMPLE_ROWS, spec.num_numbers))
    return tuple(gated)


def _few(gated: Sequence[Gated]) -> bool:
    """Say whether in each layer the gates together choose at most half of the experts."""
    layers = [list(each) for _, each in groupby(gated, key=lambda each: each.layer)]
    return all(2 * _slots(gates) <= gates[0].routing.num_experts for gates in layers)


def _slots(gates: Sequence[Gated]) -> int:
    """Return the most experts that a row uses through the gates of a layer."""
    router = gates[0].router
    if isinstance(router, UnionBudgetRouter):
        return router.slots_of(len(gates))
    return sum(each.routing.weights.shape[-1] for each in gates)
