r"""The pieces of a model, what each costs, and which outputs need it.

Shapes: E experts, K slots of a row, H expert width.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from recsys_moe.errors import RequestError
from recsys_moe.modules.embeddings import Embeddings
from recsys_moe.modules.experts import ExpertBank, Gate
from recsys_moe.modules.mixtures import CGC, PLE, MMoE, SharedBottom
from recsys_moe.modules.multi_task import MultiTaskModel, SeparateModels, Tower
from recsys_moe.moe.routing import Routing

Tasks = frozenset[str]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a model. Parts of one name are one piece of memory that is used more than once.

    Attributes:
        name: Where it lies in the model.
        tasks: The tasks whose outputs need it.
        parameters: The numbers in it.
        active: Those that one row is computed with.
        flops: Twice the multiply-adds of one row.
        is_embedding: Whether it is tables.
    """

    name: str
    tasks: Tasks
    parameters: int
    active: int
    flops: int
    is_embedding: bool = False


@runtime_checkable
class HasParts(Protocol):
    """A module that accounts for itself: a wiring that this file does not know."""

    def parts(self, tasks: Sequence[str], name: str) -> list[Part]:
        """Return its parts; `tasks` are the outputs in order, `name` is its place in the model."""


def parts_of(module: nn.Module, tasks: Sequence[str] = ("all",), name: str = "") -> list[Part]:
    """Return the parts of a model, or of a wiring that feeds these tasks in their order.

    Raises:
        RequestError: A module of a kind that is not known here and has no `parts` itself.
    """
    if isinstance(module, HasParts):
        return module.parts(tasks, name)
    if isinstance(getattr(module, "router", None), nn.Module):
        return block_parts(module, frozenset(tasks), name)
    return _parts(module, tasks, name)


@singledispatch
def _parts(module: nn.Module, tasks: Sequence[str], name: str) -> list[Part]:
    raise RequestError(
        f"account of {name or 'the model'}",
        wanted="a model of this project, or a module with `parts`",
        got=type(module).__name__,
    )


@_parts.register
def _(module: SeparateModels, tasks: Sequence[str], name: str) -> list[Part]:
    return [
        part
        for number, model in enumerate(module.models)
        for part in parts_of(model, (), _join(name, f"models.{number}"))
    ]


@_parts.register
def _(module: MultiTaskModel, tasks: Sequence[str], name: str) -> list[Part]:
    everyone, tables = frozenset(module.tasks), module.embeddings
    own = [
        dense_part(tower, frozenset({task}), _join(name, f"towers.{number}"), _width_in(tower))
        for number, (task, tower) in enumerate(zip(module.tasks, module.towers, strict=True))
    ]
    embeddings = Part(
        _join(name, "embeddings"), everyone, count(tables), _looked_up(tables), 0, is_embedding=True
    )
    return [*own, embeddings, *parts_of(module.mixture, module.tasks, _join(name, "mixture"))]


@_parts.register
def _(module: SharedBottom, tasks: Sequence[str], name: str) -> list[Part]:
    return [bank_part(module.bank, frozenset(tasks), _join(name, "bank"))]


@_parts.register
def _(module: MMoE, tasks: Sequence[str], name: str) -> list[Part]:
    bank = bank_part(module.bank, frozenset(tasks), _join(name, "bank"))
    return [bank, *_gates(module.gates, tasks, module.output_width, _join(name, "gates"))]


@_parts.register
def _(module: PLE, tasks: Sequence[str], name: str) -> list[Part]:
    levels = enumerate(module.levels)
    return [p for n, level in levels for p in parts_of(level, tasks, _join(name, f"levels.{n}"))]


@_parts.register
def _(module: CGC, tasks: Sequence[str], name: str) -> list[Part]:
    """With a shared gate every task's experts reach all outputs, through the level above."""
    everyone, width = frozenset(tasks), module.shared_bank.output_width
    found = [bank_part(module.shared_bank, everyone, _join(name, "shared_bank"))]
    for number, (task, bank) in enumerate(zip(tasks, module.task_banks, strict=True)):
        users = frozenset({task}) if module.shared_gate is None else everyone
        found.append(bank_part(bank, users, _join(name, f"task_banks.{number}")))
    found += _gates(module.task_gates, tasks, width, _join(name, "task_gates"))
    if module.shared_gate is not None:
        found.append(_gate(module.shared_gate, everyone, width, _join(name, "shared_gate")))
    return found


def block_parts(module: nn.Module, tasks: Tasks, name: str) -> list[Part]:
    """Return the parts of a block: a `router`, a `bank`, and a `shared` bank or None."""
    router, bank = module.get_submodule("router"), module.get_submodule("bank")
    found = [router_part(router, tasks, _join(name, "router"))]
    found.append(routed_part(bank, router, tasks, _join(name, "bank")))
    if getattr(module, "shared", None) is not None:
        shared = module.get_submodule("shared")
        found.append(bank_part(shared, tasks, _join(name, "shared")))
    return found


def router_part(router: nn.Module, tasks: Tasks, name: str) -> Part:
    """Return a router's part, noise and other training matters left out of its FLOPs."""
    return dense_part(router, tasks, name, size(router, "width"))


def routed_part(bank: nn.Module, router: nn.Module, tasks: Tasks, name: str) -> Part:
    r"""Return the part that a bank has behind one router.

    K of E experts of the mean expert's cost, and their weighted sum, 2 K O FLOPs; all E behind a
    dense gate. For several routers over one bank, return one part each under the same name.
    """
    slots, experts = num_slots(router), size(bank, "num_experts")
    whole = bank_part(bank, tasks, name)
    active = round(whole.parameters * slots / experts)
    flops = round(whole.flops * slots / experts) + 2 * slots * size(bank, "output_width")
    return Part(name, tasks, whole.parameters, active, flops)


def bank_part(bank: nn.Module, tasks: Tasks, name: str) -> Part:
    """Return the part of a bank whose experts are all computed."""
    return dense_part(bank, tasks, name, _width_in(bank))


def dense_part(module: nn.Module, tasks: Tasks, name: str, width: int) -> Part:
    """Return the part of a module that reads rows of one width and is used as a whole."""
    return Part(name, tasks, count(module), count(module), flops_per_row(module, width))


def num_slots(router: nn.Module) -> int:
    """Return how many experts a row uses at most: K, or all E of a dense gate.

    A router over several tasks says its `slots`, those of all tasks together.
    """
    if isinstance(getattr(router, "slots", None), int):
        return size(router, "slots")
    with _traced(router):
        routing: Routing = router(_row(router, size(router, "width")))
    return routing.num_experts if routing.index is None else routing.weights.shape[-1]


def flops_per_row(module: nn.Module, width: int) -> int:
    """Return the FLOPs of the products in a module's forward pass on one row, nothing computed.

    A module may say its own `flops_per_row`, where its arithmetic is no product of tensors.
    """
    own = getattr(module, "flops_per_row", None)
    if isinstance(own, int):
        return own
    counter = FlopCounterMode(display=False)
    with _traced(module), counter:
        module(_row(module, width))
    return int(counter.get_total_flops())


def count(module: nn.Module) -> int:
    """Count a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def size(module: nn.Module, name: str) -> int:
    """Return one of a router's or bank's sizes.

    Raises:
        RequestError: The module has no such number.
    """
    value = getattr(module, name, None)
    if not isinstance(value, int):
        kind = type(module).__name__
        raise RequestError(f"account of {kind}", wanted=f"a number `{name}`", got=repr(value))
    return value


def _gates(gates: nn.ModuleList, tasks: Sequence[str], width: int, name: str) -> list[Part]:
    return [
        _gate(gate, frozenset({task}), width, _join(name, str(number)))
        for number, (task, gate) in enumerate(zip(tasks, gates, strict=True))
    ]


def _gate(gate: nn.Module, tasks: Tasks, width: int, name: str) -> Part:
    """Return the part of a gate, with the weighted sum that it takes."""
    assert isinstance(gate, Gate)
    part = dense_part(gate, tasks, name, gate.linear.in_features)
    mix = 2 * gate.linear.out_features * width
    return Part(name, tasks, part.parameters, part.active, part.flops + mix)


def _looked_up(embeddings: Embeddings) -> int:
    return embeddings.bounds[-1] * embeddings.dim


def _width_in(module: nn.Module) -> int:
    """Return the width of the rows that a bank or a tower reads."""
    if isinstance(module, ExpertBank):
        return int(module.weights_EOI[0].shape[-1])
    if isinstance(module, Tower):
        return size([*module.hidden, module.logit][0], "in_features")
    return size(module, "input_width")


def _join(name: str, rest: str) -> str:
    return f"{name}.{rest}" if name else rest


def _row(module: nn.Module, width: int) -> Tensor:
    like = next(module.parameters(), torch.empty(0))
    return torch.empty(1, width, dtype=like.dtype, device=like.device)


@contextlib.contextmanager
def _traced(module: nn.Module) -> Iterator[None]:
    """Let a module run for its shapes alone, all within it in evaluation mode."""
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            yield
    finally:
        for part, training in before.items():
            part.training = training
