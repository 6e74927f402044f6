"""The pieces of a model, what each costs, and which outputs need it.

A wiring is taken apart here; the sums over its pieces are in `accounts`, the cost of one module in
`accounts_cost`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Protocol, cast, runtime_checkable

from torch import nn

from recsys_moe.errors import RequestError
from recsys_moe.modules.domains import DomainExpert
from recsys_moe.modules.embeddings import Embeddings
from recsys_moe.modules.mixtures import CGC, PLE, MMoE, SharedBottom
from recsys_moe.modules.multi_task import MultiTaskModel, SeparateModels, Tower
from recsys_moe.moe.accounts_cost import count, flops_per_row, num_slots, size
from recsys_moe.moe.banks_hetero import HeteroBank
from recsys_moe.moe.router_union_budget import UnionBudgetRouter

Tasks = frozenset[str]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece that every row is computed with.

    Attributes:
        name: Where it lies in the model.
        tasks: The tasks whose outputs need it.
        parameters: The numbers in it.
        flops: Twice the multiply-adds of one row.
        dense_flops: The same where all experts are computed, if that is more.
        looked_up: Of tables the numbers that one row reads; None for what is not a table.
    """

    name: str
    tasks: Tasks
    parameters: int
    flops: int
    dense_flops: int | None = None
    looked_up: int | None = None


@dataclass(frozen=True, slots=True)
class Expert:
    """One expert; experts of one name are one piece of memory, computed once.

    Attributes:
        name: Its bank's place in the model, and its number in the bank.
        parameters: The numbers in it.
        flops: Twice the multiply-adds of one row, as far as they are known.
        counted: Whether they are: trees and other frozen models need not say.
    """

    name: str
    parameters: int
    flops: int
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Choice:
    """A gate's choice: some of the experts that it sees, for the outputs of some tasks.

    Attributes:
        tasks: The tasks whose outputs need it.
        slots: The most experts that it uses for a row.
        experts: Those that it sees.
    """

    tasks: Tasks
    slots: int
    experts: tuple[Expert, ...]


Piece = Part | Choice


@runtime_checkable
class HasPieces(Protocol):
    """A module that accounts for itself: a wiring that this file does not know."""

    def pieces(self, tasks: Sequence[str], name: str) -> list[Piece]:
        """Return its pieces; `tasks` are the outputs in order, `name` is its place in the model."""


def pieces_of(module: nn.Module, tasks: Sequence[str] = ("all",), name: str = "") -> list[Piece]:
    """Return the pieces of a model, or of a wiring that feeds these tasks in their order.

    Raises:
        RequestError: A module of a kind that is not known here and has no `pieces` itself.
    """
    if isinstance(module, HasPieces):
        return module.pieces(tasks, name)
    if isinstance(getattr(module, "router", None), nn.Module):
        return block_pieces(module, frozenset(tasks), name)
    return _pieces(module, tasks, name)


@singledispatch
def _pieces(module: nn.Module, tasks: Sequence[str], name: str) -> list[Piece]:
    raise RequestError(
        f"account of {name or 'the model'}",
        wanted="a model of this project, or a module with `pieces`",
        got=type(module).__name__,
    )


@_pieces.register
def _(module: SeparateModels, tasks: Sequence[str], name: str) -> list[Piece]:
    return [
        piece
        for number, model in enumerate(module.models)
        for piece in pieces_of(model, (), _join(name, f"models.{number}"))
    ]


@_pieces.register
def _(module: MultiTaskModel, tasks: Sequence[str], name: str) -> list[Piece]:
    found: list[Piece] = [
        _whole(tower, frozenset({task}), _join(name, f"towers.{number}"), _tower_width(tower))
        for number, (task, tower) in enumerate(zip(module.tasks, module.towers, strict=True))
    ]
    tables, everyone = module.embeddings, frozenset(module.tasks)
    found.append(_tables(tables, everyone, _join(name, "embeddings")))
    for number, domain in enumerate(module.domains):
        place = _join(name, f"domains.{number}")
        found += _domain(cast(DomainExpert, domain), module.tasks, place)
    return [*found, *pieces_of(module.mixture, module.tasks, _join(name, "mixture"))]


def _domain(domain: DomainExpert, tasks: Sequence[str], name: str) -> list[Piece]:
    """Return the pieces of an expert that a graph computes for every row."""
    found = always_pieces(domain.bank, frozenset(tasks), _join(name, "bank"))
    width = size(domain.bank, "input_width")
    for number, (gate, task) in enumerate(zip(domain.gates, tasks, strict=True)):
        found.append(_whole(gate, frozenset({task}), _join(name, f"gates.{number}"), width))
    return found


@_pieces.register
def _(module: SharedBottom, tasks: Sequence[str], name: str) -> list[Piece]:
    return always_pieces(module.bank, frozenset(tasks), _join(name, "bank"))


@_pieces.register
def _(module: MMoE, tasks: Sequence[str], name: str) -> list[Piece]:
    everyone = frozenset(tasks)
    experts, found = bank_pieces(module.bank, everyone, _join(name, "bank"))
    if isinstance(module.gates, UnionBudgetRouter):
        place = _join(name, "gates")
        if len(module.gate_names) < len(tasks):  # one gate for all
            found += gate_pieces(module.gates, everyone, experts, module.output_width, place)
        else:
            found += union_pieces(module.gates, tasks, experts, module.output_width, place)
    else:
        gates = list(cast(nn.ModuleList, module.gates))
        users = [everyone] if len(gates) < len(tasks) else [frozenset({task}) for task in tasks]
        for number, (gate, mine) in enumerate(zip(gates, users, strict=True)):
            place = _join(name, f"gates.{number}")
            found += gate_pieces(gate, mine, experts, module.output_width, place)
    if module.shared is not None:
        found += always_pieces(module.shared, everyone, _join(name, "shared"))
    return found


@_pieces.register
def _(module: PLE, tasks: Sequence[str], name: str) -> list[Piece]:
    """Below the last level everything reaches all outputs, through a shared gate further up.

    The tasks' gates of the last level but one feed their own task's experts and gate alone.
    """
    found: list[Piece] = []
    for number, level in enumerate(module.levels):
        above = len(module.levels) - 1 - number
        found += _level(cast(CGC, level), tasks, above, _join(name, f"levels.{number}"))
    return found


def _level(level: CGC, tasks: Sequence[str], above: int, name: str) -> list[Piece]:
    everyone, width = frozenset(tasks), level.shared_bank.output_width
    alone = [frozenset({task}) for task in tasks]
    shared, found = bank_pieces(level.shared_bank, everyone, _join(name, "shared_bank"))
    own: list[tuple[Expert, ...]] = []
    for number, bank in enumerate(level.task_banks):
        users = alone[number] if not above or number in level.late else everyone
        experts, more = bank_pieces(bank, users, _join(name, f"task_banks.{number}"))
        own.append(experts)
        found += more
    for number, gate in enumerate(level.task_gates):
        users = alone[number] if above <= 1 or number in level.late else everyone
        place = _join(name, f"task_gates.{number}")
        found += gate_pieces(gate, users, (*own[number], *shared), width, place)
    if level.shared_gate is not None:
        early = (experts for number, experts in enumerate(own) if number not in level.late)
        seen = (*(expert for experts in early for expert in experts), *shared)
        found += gate_pieces(level.shared_gate, everyone, seen, width, _join(name, "shared_gate"))
    return found


def block_pieces(module: nn.Module, tasks: Tasks, name: str) -> list[Piece]:
    """Return the pieces of a block: a `router`, a `bank`, and a `shared` bank or None."""
    router, bank = module.get_submodule("router"), module.get_submodule("bank")
    experts, found = bank_pieces(bank, tasks, _join(name, "bank"))
    width = size(bank, "output_width")
    found += gate_pieces(router, tasks, experts, width, _join(name, "router"))
    if getattr(module, "shared", None) is not None:
        found += always_pieces(module.get_submodule("shared"), tasks, _join(name, "shared"))
    return found


def bank_pieces(bank: nn.Module, tasks: Tasks, name: str) -> tuple[tuple[Expert, ...], list[Piece]]:
    """Return a bank's experts, and the projections that experts share."""
    if not isinstance(bank, HeteroBank):
        return _experts(bank, name, 0), []
    experts: list[Expert] = []
    shared: list[Piece] = []
    for number, (part, projection, _) in enumerate(bank.parts()):
        to_width = flops_per_row(projection, size(part, "output_width")) or 0
        experts += _experts(part, _join(name, f"banks.{number}"), to_width)
        if parameters := count(projection):
            place = _join(name, f"projections.{number}")
            shared.append(Part(place, tasks, parameters, 0))
    return tuple(experts), shared


def _experts(bank: nn.Module, name: str, more: int) -> tuple[Expert, ...]:
    """Return the experts of a bank of one kind, each with `more` FLOPs."""
    number, flops = size(bank, "num_experts"), flops_per_row(bank, size(bank, "input_width"))
    parameters, each = count(bank) // number, (flops or 0) // number + more
    return tuple(
        Expert(f"{name}.{e}", parameters, each, counted=flops is not None) for e in range(number)
    )


def always_pieces(bank: nn.Module, tasks: Tasks, name: str) -> list[Piece]:
    """Return the pieces of a bank whose experts all see every row, with weight one."""
    experts, found = bank_pieces(bank, tasks, name)
    return [*found, Choice(tasks, len(experts), experts)]


def gate_pieces(
    router: nn.Module, tasks: Tasks, experts: tuple[Expert, ...], width: int, name: str
) -> list[Piece]:
    """Return a gate's pieces: itself, its weighted sum of outputs (…, width), and its choice."""
    slots = num_slots(router)
    itself = _whole(router, tasks, name, size(router, "width"))
    return [itself, _sum(tasks, slots, experts, width, name), Choice(tasks, slots, experts)]


def union_pieces(
    router: UnionBudgetRouter,
    tasks: Sequence[str],
    experts: tuple[Expert, ...],
    width: int,
    name: str,
) -> list[Piece]:
    """Return the pieces of a router over several tasks: a joint choice, and each task's own."""
    everyone, slots = frozenset(tasks), router.shared + router.private
    found: list[Piece] = [_whole(router, everyone, name, router.width)]
    found.append(Choice(everyone, router.shared, experts))
    for task in tasks:
        alone = frozenset({task})
        found.append(_sum(alone, slots, experts, width, name))
        found.append(Choice(alone, router.private, experts))
    return found


def _sum(tasks: Tasks, slots: int, experts: Sequence[Expert], width: int, name: str) -> Part:
    dense = 2 * len(experts) * width
    return Part(_join(name, "sum"), tasks, 0, 2 * slots * width, dense)


def _whole(module: nn.Module, tasks: Tasks, name: str, width: int) -> Part:
    """Return the part of a module that reads rows of one width and is used as a whole."""
    return Part(name, tasks, count(module), flops_per_row(module, width) or 0)


def _tables(embeddings: Embeddings, tasks: Tasks, name: str) -> Part:
    looked_up = embeddings.bounds[-1] * embeddings.dim
    return Part(name, tasks, count(embeddings), 0, looked_up=looked_up)


def _tower_width(tower: nn.Module) -> int:
    assert isinstance(tower, Tower)
    return size([*tower.hidden, tower.logit][0], "in_features")


def _join(name: str, rest: str) -> str:
    return f"{name}.{rest}" if name else rest
