"""Experts taken out of a mixture: what is left is copied, and gates forget the rest."""

from collections.abc import Mapping, Sequence
from typing import cast

from torch import nn

from recsys_moe.errors import RequestError
from recsys_moe.modules.gated import Layer
from recsys_moe.modules.mixtures import CGC, PLE, AnyBank, Mixture, MMoE
from recsys_moe.moe.router_base import Router
from recsys_moe.moe.router_union_budget import UnionBudgetRouter


def remove_experts(mixture: Mixture, removed: Mapping[str, Sequence[str]]) -> None:
    """Take experts out of a mixture, in place.

    Args:
        mixture: An `MMoE` or a `PLE`.
        removed: By layer the names of the experts to take out.

    Raises:
        RequestError: An unknown layer or expert, a bank that would be left empty, or a router that
            cannot do with fewer.
    """
    layers = {layer.name: layer for layer in mixture.layers()}
    for name, experts in removed.items():
        if name not in layers:
            raise RequestError("layer", wanted="a layer", got=repr(name), choices=layers)
        gone = numbers(layers[name], experts)
        kept = [e for e in range(len(layers[name].experts)) if e not in gone]
        names = tuple(layers[name].experts[e] for e in kept)
        if isinstance(mixture, MMoE):
            _keep_pool(mixture, kept)
            mixture.names = names
        else:
            assert isinstance(mixture, PLE)
            place = list(layers).index(name)
            _keep_level(cast(CGC, mixture.levels[place]), kept)
            every = list(mixture.names)
            mixture.names = (*every[:place], names, *every[place + 1 :])


def numbers(layer: Layer, experts: Sequence[str | int]) -> list[int]:
    """Return the numbers of a layer's experts, given by number or by name.

    Raises:
        RequestError: None of them, or one that the layer has not.
    """
    if not experts:
        wanted = f"experts of {layer.name!r}, by number or name"
        raise RequestError("experts", wanted=wanted, got="none")
    found = []
    for expert in experts:
        known = range(len(layer.experts)) if isinstance(expert, int) else layer.experts
        if isinstance(expert, bool) or expert not in known:
            wanted = f"0 to {len(layer.experts) - 1} or a name of {layer.name!r}"
            raise RequestError("experts", wanted=wanted, got=repr(expert), choices=layer.experts)
        found.append(expert if isinstance(expert, int) else layer.experts.index(expert))
    return found


def _keep_pool(mixture: MMoE, kept: Sequence[int]) -> None:
    mixture.bank = _kept(mixture.bank, kept, "experts")
    gates = [mixture.gates] if isinstance(mixture.gates, UnionBudgetRouter) else mixture.gates
    for gate in cast(Sequence[Router], gates):
        gate.keep(kept)


def _keep_level(level: CGC, kept: Sequence[int]) -> None:
    for gate, places in zip(level.gates(), level.places, strict=True):
        gate.keep([local for local, expert in enumerate(places) if expert in kept])
    first, banks = 0, []
    for number, bank in enumerate(cast(Sequence[AnyBank], [*level.task_banks, level.shared_bank])):
        mine = [e - first for e in kept if first <= e < first + bank.num_experts]
        first += bank.num_experts
        is_own = number < len(level.task_banks)
        banks.append(_kept(bank, mine, "a task's own experts" if is_own else "shared experts"))
    level.task_banks, level.shared_bank = nn.ModuleList(banks[:-1]), banks[-1]
    level.number_experts()


def _kept(bank: AnyBank, kept: Sequence[int], what: str) -> AnyBank:
    if not kept:
        raise RequestError("experts", wanted=f"one of {what} to stay", got="all of them to go")
    return bank if len(kept) == bank.num_experts else bank.keep(kept)
