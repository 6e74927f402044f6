"""What keeps a model's gates balanced as it trains: losses beside the tasks', selection biases.

Each function here builds it for a model, with the arguments of a YAML of `conf/balance/`.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recsys_moe.errors import RequestError
from recsys_moe.modules.gated import Gated, Layer
from recsys_moe.moe.balance_losses import BalanceLosses
from recsys_moe.moe.router_base import Router
from recsys_moe.moe.router_dselect_k import DSelectKRouter
from recsys_moe.moe.router_sigmoid import SigmoidRouter
from recsys_moe.moe.router_top_k import NoisyTopKRouter
from recsys_moe.moe.router_union_budget import stacked
from recsys_moe.moe.routing import Routing

MakeBalance = Callable[[nn.Module], "GateBalance"]
NEEDS: Mapping[str, type[Router]] = {
    "load": NoisyTopKRouter,
    "selector_entropy": DSelectKRouter,
    "unreachable_mass": DSelectKRouter,
}
"""The losses that one kind of router alone can have."""


class GateBalance:
    """The balance losses of a model's gates, and the biases of its sigmoid routers.

    A loss is a mean over the routers. One that decides for several gates counts once, over the rows
    of all (`router_union_budget.stacked`). A bias moves once per step of the
    optimiser, by the loads of the whole step, and only where nothing of its router is frozen.
    """

    def __init__(
        self,
        model: nn.Module,
        coefficients: Callable[[Router], Mapping[str, float]],
        *,
        bias_rate: float,
    ) -> None:
        """Prepare the losses.

        Args:
            model: The model, with the gates of its `layers`.
            coefficients: For a router, its losses' names and coefficients.
            bias_rate: How far a selection bias moves in a step; 0 leaves it alone.

        Raises:
            RequestError: A coefficient or a rate that is negative, or a loss that a router cannot
                have.
        """
        if isinstance(bias_rate, bool) or not isinstance(bias_rate, int | float) or bias_rate < 0:
            raise RequestError("balance.bias_rate", wanted="a number >= 0", got=repr(bias_rate))
        self.bias_rate = bias_rate
        self.group: dist.ProcessGroup | None = None
        routers = [module for module in model.modules() if isinstance(module, Router)]
        self._losses: list[BalanceLosses] = []
        self._of: dict[int, BalanceLosses] = {}
        known: dict[tuple[tuple[str, float], ...], BalanceLosses] = {}
        for router in routers:
            given = {name: value for name, value in coefficients(router).items() if value != 0}
            for name in given:
                if not isinstance(router, NEEDS.get(name, Router)):
                    raise RequestError(
                        f"balance.{name}",
                        wanted=f"0 for all routers but {NEEDS[name].__name__}",
                        got=f"{given[name]} for {type(router).__name__}",
                    )
            key = tuple(sorted(given.items()))
            if given and key not in known:
                known[key] = _losses(given)
                self._losses.append(known[key])
            if given:
                self._of[id(router)] = known[key]
        self._counts: dict[int, Tensor] = {}
        self._biased: dict[int, SigmoidRouter] = {}
        self._places = {
            (layer.name, gate): torch.tensor(visible).nonzero().squeeze(1)
            for layer in _layers(model)
            for gate, visible in zip(layer.gates, layer.visible, strict=True)
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The losses that `losses` returns, in its order."""
        return tuple(dict.fromkeys(name for part in self._losses for name in part.coefficients))

    def start(
        self, device: torch.device, *, num_micro_batches: int, group: dist.ProcessGroup | None
    ) -> None:
        """Learn where, how many batches a step has, and over which processes sums are taken."""
        self._places = {gate: places_V.to(device) for gate, places_V in self._places.items()}
        self.group = group
        for part in self._losses:
            part.accumulate, part.group = num_micro_batches > 1, group

    def losses(self, gated: Sequence[Gated]) -> dict[str, Tensor]:
        """Return each loss of a batch, a scalar, and count the batch for the biases."""
        routers, routings = _by_router(gated)
        found: dict[str, Tensor] = {}
        for part in self._losses:
            mine = [
                routing
                for router, routing in zip(routers, routings, strict=True)
                if self._of.get(id(router)) is part
            ]
            for name, loss in part(mine).items():
                found[name] = found[name] + loss if name in found else loss
        self._count(gated)
        return found

    def step_done(self) -> None:
        """Move the biases by what was counted since the last step, and forget it."""
        for part in self._losses:
            part.step_done()
        for number, counts_E in self._counts.items():
            if self.group is not None:
                dist.all_reduce(counts_E, group=self.group)
            self._biased[number].update_bias(counts_E, self.bias_rate)
        self._counts.clear()

    def _count(self, gated: Sequence[Gated]) -> None:
        """Add the rows that each expert of a sigmoid router gets, numbered as the router does."""
        for gate in gated:
            router = gate.router
            if not self.bias_rate or not isinstance(router, SigmoidRouter):
                continue
            if not all(parameter.requires_grad for parameter in router.parameters()):
                continue
            counts_E = gate.routing.counts()
            if len(counts_E) != router.num_experts:
                counts_E = counts_E[self._places[gate.layer, gate.gate]]
            number = id(router)
            self._biased[number] = router
            before_E = self._counts.get(number)
            self._counts[number] = counts_E if before_E is None else before_E + counts_E


def auto(model: nn.Module, *, bias_rate: float) -> GateBalance:
    """Give each router the losses that are its own (`Router.balance`)."""
    return GateBalance(model, lambda router: router.balance, bias_rate=bias_rate)


def none(model: nn.Module) -> GateBalance:
    """Leave the gates to the tasks' losses."""
    return GateBalance(model, lambda _: {}, bias_rate=0.0)


def custom(
    model: nn.Module,
    *,
    switch: float,
    z: float,
    importance: float,
    load: float,
    entropy: float,
    selector_entropy: float,
    unreachable_mass: float,
    bias_rate: float,
) -> GateBalance:
    """Give all routers the same losses, with coefficients as in `BalanceLosses`."""
    given = BalanceLosses(
        switch=switch,
        z=z,
        importance=importance,
        load=load,
        entropy=entropy,
        selector_entropy=selector_entropy,
        unreachable_mass=unreachable_mass,
    ).coefficients
    if given and not _layers(model):
        raise RequestError("balance=custom", wanted="a model with gates", got="one without")
    return GateBalance(model, lambda _: given, bias_rate=bias_rate)


def _losses(coefficients: Mapping[str, float]) -> BalanceLosses:
    return BalanceLosses(**coefficients)  # type: ignore[arg-type]


def _layers(model: nn.Module) -> Sequence[Layer]:
    layers: Sequence[Layer] = model.layers()  # type: ignore[operator]
    return layers


def _by_router(gated: Sequence[Gated]) -> tuple[list[Router], list[Routing]]:
    """Return each router once, and what it decided for all of its gates."""
    found: dict[int, tuple[Router, list[Routing]]] = {}
    for gate in gated:
        found.setdefault(id(gate.router), (gate.router, []))[1].append(gate.routing)
    routers = [router for router, _ in found.values()]
    together = [
        routings[0] if len(routings) == 1 else stacked(routings) for _, routings in found.values()
    ]
    return routers, together
