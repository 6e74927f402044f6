r"""Parameters that stay what they are while the rest is trained, bit for bit.

Shapes: V rows of a parameter.
"""

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from recsys_moe.modules.mixtures import CGC, PLE, AnyBank, MMoE
from recsys_moe.moe.banks import Bank
from recsys_moe.moe.banks_hetero import HeteroBank
from recsys_moe.moe.router_base import LinearRouter, Router

Held = Mapping[str, Tensor | None]
"""Names of parameters, each with the numbers of the rows that stay; None for all of them."""


def hold(model: nn.Module, held: Held) -> None:
    """Let training leave parameters alone.

    Those held whole need no gradient. Of the others the rows held get a gradient of zero, and the
    whole parameter no weight decay, so that every optimiser leaves these rows as they are.

    Args:
        model: The model.
        held: What stays.
    """
    for name, rows_R in held.items():
        parameter = model.get_parameter(name)
        if rows_R is None or len(rows_R) == len(parameter):
            parameter.requires_grad_(False)
        elif len(rows_R):
            mask_V = torch.zeros(len(parameter), dtype=torch.bool)
            mask_V[rows_R] = True
            parameter.register_hook(_Masked(mask_V))  # type: ignore[no-untyped-call]
            path, _, leaf = name.rpartition(".")
            owner = model.get_submodule(path)
            before = cast(tuple[str, ...], getattr(owner, "no_weight_decay", ()))
            owner.no_weight_decay = (*before, leaf)  # type: ignore[assignment]


class _Masked:
    """A hook that leaves no gradient at some rows."""

    def __init__(self, mask_V: Tensor) -> None:
        self.mask_V = mask_V

    def __call__(self, gradient: Tensor) -> Tensor:
        self.mask_V = self.mask_V.to(gradient.device)
        shape = (len(gradient),) + (1,) * (gradient.dim() - 1)
        return gradient.masked_fill(self.mask_V.view(shape), 0)


def all_but(model: nn.Module, free: Iterable[str]) -> dict[str, Tensor | None]:
    """Return all parameters but some, as held whole."""
    kept = set(free)
    return {name: None for name, _ in model.named_parameters() if name not in kept}


def gate_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters of all gates."""
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, Router)
        for name, _ in module.named_parameters()
    ]


def opened_names(closed: nn.Module, model: nn.Module) -> list[str]:
    """Return the names of what counts in a model and not yet in the same one more closed."""
    prefixes: list[str] = []
    for path, module in model.named_modules():
        before = closed.get_submodule(path)
        if isinstance(module, HeteroBank) and isinstance(before, HeteroBank):
            places = range(len(before.parts()), len(module.parts()))
            prefixes += [f"{path}.{part}.{n}." for n in places for part in ("banks", "projections")]
        if isinstance(module, LinearRouter) and isinstance(before, LinearRouter):
            prefixes += [f"{path}.added.{n}." for n in range(before.num_open, module.num_open)]
    return [name for name, _ in model.named_parameters() if name.startswith(tuple(prefixes))]


def expert_rows(model: nn.Module, layer: str, experts: Iterable[int]) -> dict[str, Tensor | None]:
    """Return which rows of which parameters are some experts of a layer.

    A projection that the experts of one bank share is held whole.
    """
    mixture = model.get_submodule("mixture")
    if isinstance(mixture, MMoE):
        banks: list[nn.Module] = [mixture.bank]
    else:
        assert isinstance(mixture, PLE)
        place = [each.name for each in mixture.layers()].index(layer)
        level = cast(CGC, mixture.levels[place])
        banks = [*level.task_banks, level.shared_bank]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    wanted, first = sorted(set(experts)), 0
    found: dict[str, Tensor | None] = {}
    for bank, projection in (pair for each in banks for pair in _parts(cast(AnyBank, each))):
        rows = [e - first for e in wanted if first <= e < first + bank.num_experts]
        first += bank.num_experts
        if rows:
            found |= {names[id(p)]: torch.tensor(rows) for p in bank.parameters()}
            found |= {names[id(p)]: None for p in projection.parameters()}
    return found


def _parts(bank: AnyBank) -> list[tuple[Bank, nn.Module]]:
    if isinstance(bank, HeteroBank):
        return [(part, projection) for part, projection, _ in bank.parts()]
    return [(bank, nn.Identity())]
