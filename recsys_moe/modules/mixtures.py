r"""What stands between the embeddings and the towers: one representation per task.

Shapes: B batch, I input width, R raw columns after it, E experts, H expert width, T tasks.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recsys_moe.errors import RequestError
from recsys_moe.modules.gated import Gated, Layer
from recsys_moe.moe.banks import Bank
from recsys_moe.moe.banks_hetero import HeteroBank
from recsys_moe.moe.router_base import Router
from recsys_moe.moe.router_union_budget import UnionBudgetRouter
from recsys_moe.moe.routing import Routing
from recsys_moe.moe.sources import Source, mix_sources

AnyBank = Bank | HeteroBank
Mixed = tuple[tuple[Tensor, ...], tuple[Gated, ...]]


class Mixture(nn.Module):
    """What all mixtures share: how experts are computed, and one of them left out for a test.

    Attributes:
        dispatch: As in `sources.mix_sources`; an export sets it.
        ablated: A layer's name and the number of the expert that gets no weight in any gate, the
            others of a gate scaled to the same sum; None for none.
        output_width: H.
    """

    output_width: int

    def __init__(self) -> None:
        super().__init__()
        self.dispatch = "auto"
        self.ablated: tuple[str, int] | None = None

    def routed(self, x_BI: Tensor) -> Mixed:
        """Return one mixture (B, H) per task, and what each gate decided."""
        raise NotImplementedError

    def forward(self, x_BI: Tensor) -> tuple[Tensor, ...]:
        """Return one mixture (B, H) per task."""
        return self.routed(x_BI)[0]

    def layers(self) -> tuple[Layer, ...]:
        """Return the layers of experts, none where there is no gate."""
        return ()

    def cut(self, routing: Routing, layer: str, places: Sequence[int]) -> Routing:
        """Return a gate's routing without the expert that is left out, if it sees it."""
        if self.ablated is None or self.ablated[0] != layer or self.ablated[1] not in places:
            return routing
        return routing.without(list(places).index(self.ablated[1]))


class SharedBottom(Mixture):
    """One trunk for all tasks (Caruana, Machine Learning 1997): a bank of one expert, no gate."""

    def __init__(self, bank: AnyBank, num_tasks: int) -> None:
        super().__init__()
        self.bank, self.num_tasks, self.output_width = bank, num_tasks, bank.output_width

    def routed(self, x_BI: Tensor) -> Mixed:
        """Return the same (B, H) for each task."""
        return (self.bank(x_BI)[:, 0],) * self.num_tasks, ()


class MMoE(Mixture):
    r"""Mix one bank of experts once per task (Ma et al., KDD 2018, section 4), or once for all.

    .. math:: y_t = \sum_e w_t(x)_e \, f_e(x) + \sum_s f_s(x)

    with :math:`w_t` a gate's weights, in the paper :math:`\operatorname{softmax}(g_t(x))`, and
    :math:`f_s` experts that every row uses (DeepSeek-AI, 2024, equation 12), if there are any.
    """

    layer = "experts"

    def __init__(
        self,
        bank: AnyBank,
        gates: Sequence[Router] | UnionBudgetRouter,
        tasks: Sequence[str],
        *,
        names: Sequence[str],
        shared: AnyBank | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            bank: The experts; it may read raw columns after those that the gates read.
            gates: One for each task in their order, one for all tasks together, or a router that
                decides for all at once.
            tasks: The names of the tasks.
            names: A name for each expert.
            shared: Experts that every row uses with weight one.
        """
        super().__init__()
        self.bank, self.shared, self.output_width = bank, shared, bank.output_width
        self.tasks, self.names = tuple(tasks), tuple(names)
        self.gates: nn.Module
        if isinstance(gates, UnionBudgetRouter):
            self.gates, self.gate_width = gates, gates.width
            self.gate_names = self.tasks if gates.num_tasks == len(self.tasks) else ("all",)
        else:
            self.gates, self.gate_width = nn.ModuleList(gates), gates[0].width
            self.gate_names = self.tasks if len(gates) == len(self.tasks) else ("all",)
            if gates[0].mixes and bank.input_width > self.gate_width:
                wanted = "one that decides for a row alone, as frozen experts read single raw rows"
                raise RequestError("router", wanted=wanted, got=type(gates[0]).__name__)

    def routed(self, x_BI: Tensor) -> Mixed:
        """Return one mixture (B, H) per task, and what each gate decided."""
        gate_x_BD = x_BI[:, : self.gate_width]
        if isinstance(self.gates, UnionBudgetRouter):
            mixed, routings = None, self.gates(gate_x_BD)
        elif self._routers[0].mixes:
            pairs = [gate.mix(gate_x_BD, self.bank) for gate in self._routers]
            mixed, routings = [y_BH for y_BH, _ in pairs], tuple(r for _, r in pairs)
        else:
            mixed, routings = None, tuple(gate(gate_x_BD) for gate in self._routers)
        if mixed is None:
            places = range(self.bank.num_experts)
            routings = tuple(self.cut(routing, self.layer, places) for routing in routings)
            source = Source(self.bank, x_BI)
            mixed = mix_sources([source], routings, [[0]] * len(routings), how=self.dispatch)
        if self.shared is not None:
            always_BH = self.shared(gate_x_BD).sum(1)
            mixed = [y_BH + always_BH for y_BH in mixed]
        if len(mixed) < len(self.tasks):
            mixed = mixed * len(self.tasks)
        routers = self._routers if len(self._routers) > 1 else self._routers * len(routings)
        return tuple(mixed), tuple(
            Gated(self.layer, gate, router, routing)
            for gate, router, routing in zip(self.gate_names, routers, routings, strict=True)
        )

    def layers(self) -> tuple[Layer, ...]:
        """Return the one layer."""
        everyone = (True,) * self.bank.num_experts
        return (
            Layer(
                name=self.layer,
                experts=self.names,
                gates=self.gate_names,
                owners=(None,) * self.bank.num_experts,
                visible=(everyone,) * len(self.gate_names),
            ),
        )

    @property
    def _routers(self) -> list[Router]:
        if isinstance(self.gates, UnionBudgetRouter):
            return [self.gates]
        return list(self.gates)  # type: ignore[call-overload, no-any-return]


class CGC(nn.Module):
    r"""Customised gate control (Tang et al., RecSys 2020, section 4.1).

    A task mixes its own experts and the shared ones; on all levels but the last, the shared gate
    mixes all experts for the level above.

    .. math:: y_t = \sum_{e \in \mathrm{own}_t \cup \mathrm{shared}} w_t(x_t)_e \, f_e(x)

    Experts are numbered task by task, the shared ones last.
    """

    def __init__(
        self,
        task_banks: Sequence[AnyBank],
        shared_bank: AnyBank,
        task_gates: Sequence[Router],
        shared_gate: Router | None,
        *,
        late: Collection[int] = (),
    ) -> None:
        """Put the parts together; of `late` tasks, by number, the shared gate sees no expert."""
        super().__init__()
        self.task_banks, self.shared_bank = nn.ModuleList(task_banks), shared_bank
        self.task_gates, self.shared_gate = nn.ModuleList(task_gates), shared_gate
        self.late = frozenset(late)
        self.number_experts()

    def number_experts(self) -> None:
        """Number the experts through, and note which ones each gate sees."""
        banks: list[Any] = [*self.task_banks, self.shared_bank]
        num_tasks, sizes = len(banks) - 1, [int(bank.num_experts) for bank in banks]
        self.sees = [[number, num_tasks] for number in range(num_tasks)]
        if self.shared_gate is not None:
            self.sees.append([s for s in range(num_tasks + 1) if s not in self.late])
        firsts = [sum(sizes[:number]) for number in range(len(sizes))]
        self.num_experts = sum(sizes)
        self.places = [[firsts[s] + e for s in seen for e in range(sizes[s])] for seen in self.sees]
        for number, places in enumerate(self.places):
            self.register_buffer(f"places_{number}", torch.tensor(places), persistent=False)

    def gates(self) -> list[Router]:
        """Return the tasks' gates, and the shared one if there is one."""
        own: list[Any] = list(self.task_gates)
        return own if self.shared_gate is None else [*own, self.shared_gate]

    def routed(
        self, x_tasks: tuple[Tensor, ...], x_shared_BI: Tensor, mixture: Mixture, layer: str
    ) -> tuple[tuple[Tensor, ...], Tensor, list[Routing]]:
        """Return one mixture (B, H) per task, the shared one, and each gate's routing as placed.

        The last level has no shared gate and hands its shared input on.
        """
        inputs, gates = [*x_tasks, x_shared_BI], self.gates()
        sources = [
            Source(bank, x_BI)
            for bank, x_BI in zip([*self.task_banks, self.shared_bank], inputs, strict=True)
        ]
        routings = [
            mixture.cut(gate(x_BI[:, : gate.width]), layer, places)
            for gate, x_BI, places in zip(gates, inputs, self.places, strict=False)
        ]
        mixed = mix_sources(sources, routings, self.sees, how=mixture.dispatch)
        placed = [
            routing.placed(self.get_buffer(f"places_{number}"), self.num_experts)
            for number, routing in enumerate(routings)
        ]
        if self.shared_gate is None:
            return tuple(mixed), x_shared_BI, placed
        return tuple(mixed[:-1]), mixed[-1], placed


class PLE(Mixture):
    """Progressive layered extraction: levels of CGC, each fed by the one below (section 4.2)."""

    def __init__(
        self,
        levels: Sequence[CGC],
        tasks: Sequence[str],
        output_width: int,
        *,
        names: Sequence[Sequence[str]],
    ) -> None:
        """Stack the levels; `names` has a name for each expert of each level."""
        super().__init__()
        if any(gate.blends for level in levels for gate in level.gates()):
            raise RequestError(
                "router",
                wanted="one whose experts see single rows, as a task of PLE mixes two banks that "
                "read rows of their own (model=mmoe and model=moe take it)",
                got=type(levels[0].gates()[0]).__name__,
            )
        self.levels, self.output_width = nn.ModuleList(levels), output_width
        self.tasks, self.names = tuple(tasks), tuple(tuple(level) for level in names)

    def routed(self, x_BI: Tensor) -> Mixed:
        """Return one mixture (B, H) per task, and what each gate of each level decided."""
        x_tasks, x_shared_BI, found = (x_BI,) * len(self.tasks), x_BI, []
        x_tasks = tuple(
            x_B[:, : gate.width] for x_B, gate in zip(x_tasks, self._first, strict=True)
        )
        for level, layer in zip(self._levels, self.layers(), strict=True):
            x_tasks, x_shared_BI, routings = level.routed(x_tasks, x_shared_BI, self, layer.name)
            found += [
                Gated(layer.name, gate, router, routing)
                for gate, router, routing in zip(layer.gates, level.gates(), routings, strict=True)
            ]
        return x_tasks, tuple(found)

    def layers(self) -> tuple[Layer, ...]:
        """Return one layer a level."""
        return tuple(self._layer(number, level) for number, level in enumerate(self._levels))

    def _layer(self, number: int, level: CGC) -> Layer:
        gates = self.tasks if level.shared_gate is None else (*self.tasks, "shared")
        owners = [
            task
            for task, bank in zip(self.tasks, level.task_banks, strict=True)
            for _ in range(int(bank.num_experts))  # type: ignore[arg-type]
        ]
        return Layer(
            name=f"level {number}",
            experts=self.names[number],
            gates=gates,
            owners=(*owners, *(None,) * (level.num_experts - len(owners))),
            visible=tuple(
                tuple(e in places for e in range(level.num_experts)) for places in level.places
            ),
        )

    @property
    def _levels(self) -> list[CGC]:
        return list(self.levels)  # type: ignore[arg-type]

    @property
    def _first(self) -> list[Router]:
        return list(self._levels[0].task_gates)  # type: ignore[arg-type]
