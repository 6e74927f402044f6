r"""A model without what some outputs do not need: other tasks' towers, gates and own experts.

Parameters are shared with the whole model. What is left computes the same numbers.

Shapes: B batch, I input width, E experts, N rows.
"""

from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor, nn

from recsys_moe.modules.domains import DomainExpert
from recsys_moe.modules.gated import Gated
from recsys_moe.modules.mixtures import CGC, PLE, Mixed, Mixture, MMoE, SharedBottom
from recsys_moe.modules.multi_task import MultiTaskModel, SeparateModels, Tower
from recsys_moe.moe.router_base import Router
from recsys_moe.moe.router_union_budget import UnionBudgetRouter
from recsys_moe.moe.routing import Routing


def restricted(model: nn.Module, tasks: Sequence[str]) -> nn.Module:
    """Return a model for some of the tasks, in the model's order.

    Args:
        model: One of this project's models; another kind is returned as it is.
        tasks: Names of tasks, at least one of them the model's.
    """
    if isinstance(model, SeparateModels):
        parts = cast(Iterable[MultiTaskModel], model.models)
        kept = [restricted(part, tasks) for part in parts if not set(part.tasks).isdisjoint(tasks)]
        return SeparateModels(cast(list[MultiTaskModel], kept)).train(model.training)
    if not isinstance(model, MultiTaskModel) or set(model.tasks) <= set(tasks):
        return model
    places = [place for place, task in enumerate(model.tasks) if task in tasks]
    mixture = _mixture(model.mixture, places)
    mixture.dispatch = model.mixture.dispatch
    return MultiTaskModel(
        model.embeddings,
        mixture,
        {model.tasks[place]: cast(Tower, model.towers[place]) for place in places},
        embedding_dropout=model.embedding_dropout,
        reads_raw=model.reads_raw,
        domains=[cast(DomainExpert, domain).for_tasks(places) for domain in model.domains],
    ).train(model.training)


def _mixture(mixture: Mixture, places: Sequence[int]) -> Mixture:
    if isinstance(mixture, SharedBottom):
        return SharedBottom(mixture.bank, len(places))
    if isinstance(mixture, PLE):
        return _SomeOfPLE(mixture, places)
    assert isinstance(mixture, MMoE)
    gates = cast(Sequence[Router] | UnionBudgetRouter, mixture.gates)
    if len(mixture.gate_names) == len(mixture.tasks):  # else one gate for all of them
        if isinstance(gates, UnionBudgetRouter):
            gates = _SomeOfUnion(gates, places)
        else:
            gates = [gates[place] for place in places]
    tasks = [mixture.tasks[place] for place in places]
    return MMoE(mixture.bank, gates, tasks, names=mixture.names, shared=mixture.shared)


class _SomeOfUnion(UnionBudgetRouter):
    """Some tasks' routings of a router that decides for all tasks together."""

    def __init__(self, whole: UnionBudgetRouter, places: Sequence[int]) -> None:
        nn.Module.__init__(self)
        self.whole, self.places, self.width = whole, list(places), whole.width
        self.num_experts, self.num_visible = whole.num_experts, whole.num_visible
        self.shared, self.private, self.num_tasks = whole.shared, whole.private, len(places)
        self.slots = self.slots_of(self.num_tasks)

    def forward(  # type: ignore[override]
        self, x_ND: Tensor, mask_N: Tensor | None = None
    ) -> tuple[Routing, ...]:
        """Return one routing for each of the tasks."""
        routings = self.whole(x_ND, mask_N)
        return tuple(routings[place] for place in self.places)


class _SomeOfPLE(Mixture):
    """The levels of a PLE, the last for some tasks alone.

    Below it all experts feed the shared gates and are needed. The tasks' gates of the last level
    but one are not: each feeds its own task's experts, and gets an empty place.
    """

    def __init__(self, whole: PLE, places: Sequence[int]) -> None:
        super().__init__()
        *below, last = cast(list[CGC], list(whole.levels))
        if below:
            below[-1] = _with_gates(below[-1], places)
        top = CGC(
            [last.task_banks[place] for place in places],  # type: ignore[misc]
            last.shared_bank,
            [cast(Router, last.task_gates[place]) for place in places],
            None,
        )
        self.below, self.top, self.places = nn.ModuleList(below), top, list(places)
        self.tasks, self.output_width = whole.tasks, whole.output_width

    def routed(self, x_BI: Tensor) -> Mixed:
        """Return one mixture (B, H) for each of the tasks, and what the gates decided."""
        found: list[Gated] = []
        first = cast(CGC, self.below[0] if len(self.below) else self.top)
        x_tasks, x_shared_BI = tuple(x_BI[:, : gate.width] for gate in first.task_gates), x_BI
        for number, level in enumerate([*self.below, self.top]):
            if level is self.top and len(x_tasks) > len(self.places):
                x_tasks = tuple(x_tasks[place] for place in self.places)
            name = f"level {number}"
            x_tasks, x_shared_BI, routings = level.routed(x_tasks, x_shared_BI, self, name)
            pairs = zip(level.gates(), routings, strict=True)
            found += [
                Gated(name, str(place), gate, routing)
                for place, (gate, routing) in enumerate(pairs)
                if not isinstance(gate, _Empty)
            ]
        return x_tasks, tuple(found)


class _Empty(Router):
    """A gate that uses no expert and has no parameter."""

    def route(self, x_ND: Tensor) -> Routing:
        """Return a weight of 0 for every row."""
        zero_N1 = x_ND[:, :1] * 0
        none_NE = zero_N1.expand(-1, self.num_experts)
        return Routing(zero_N1, zero_N1.long(), none_NE, none_NE)


def _with_gates(level: CGC, places: Sequence[int]) -> CGC:
    """Return a level with the gates of some tasks, the others' empty."""
    gates = [
        gate if place in places else _Empty(gate.width, gate.num_experts)
        for place, gate in enumerate(cast(Iterable[Router], level.task_gates))
    ]
    banks = list(level.task_banks)
    return CGC(
        banks,  # type: ignore[arg-type]
        level.shared_bank,
        gates,
        level.shared_gate,
        late=level.late,
    )
