r"""The balance losses that a training asks for, each times its coefficient.

Shapes: N rows, E experts, K slots of a row.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recsys_moe.errors import RequestError
from recsys_moe.moe.balance import importance_cv2, load, load_cv2, switch_loss, z_loss
from recsys_moe.moe.router_dselect_k import selector_entropy, unreachable_mass
from recsys_moe.moe.router_top_p import entropy
from recsys_moe.moe.routing import Routing

_SUMS = {"z": z_loss, "importance": importance_cv2, "load": load_cv2}
_MEANS = {
    "entropy": entropy,
    "selector_entropy": selector_entropy,
    "unreachable_mass": unreachable_mass,
}


class BalanceLosses(nn.Module):
    r"""Weigh the balance losses of a model's routers; the caller adds them to the tasks' losses.

    .. math:: \lambda \, \frac{1}{L} \sum_{l=1}^{L} \mathrm{loss}(\mathrm{routing}_l)

    The mean over routers keeps a coefficient's meaning whatever a model's depth. A coefficient of 0
    leaves its loss out and computes nothing.

    With gradient accumulation (`accumulate`) the Switch loss takes its f from all micro-batches of
    the optimiser step so far (arXiv 2501.11873, the buffer); call `step_done` after each step.
    """

    def __init__(
        self,
        *,
        switch: float = 0.0,
        z: float = 0.0,
        importance: float = 0.0,
        load: float = 0.0,
        entropy: float = 0.0,
        selector_entropy: float = 0.0,
        unreachable_mass: float = 0.0,
        f_sums_to: Literal["one", "k"] = "one",
        accumulate: bool = False,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """Take a coefficient per loss.

        Args:
            switch: Of `switch_loss`; Switch uses 0.01.
            z: Of `z_loss`; ST-MoE uses 0.001.
            importance: Of `importance_cv2`; Shazeer et al. use 0.1.
            load: Of `load_cv2`, for noisy routers, in training only; Shazeer et al. use 0.1.
            entropy: Of `router_top_p.entropy`, for top-p; a mean over this process's rows.
            selector_entropy: Of `router_dselect_k.selector_entropy`, likewise.
            unreachable_mass: Of `router_dselect_k.unreachable_mass`, likewise.
            f_sums_to: The convention of `switch_loss` for k > 1.
            accumulate: Take f from all micro-batches since `step_done`.
            group: Processes over which every sum is taken; None for this one only.

        Raises:
            RequestError: For a coefficient that is negative or no number, or another `f_sums_to`.
        """
        super().__init__()
        given = {
            "switch": switch,
            "z": z,
            "importance": importance,
            "load": load,
            "entropy": entropy,
            "selector_entropy": selector_entropy,
            "unreachable_mass": unreachable_mass,
        }
        for name, value in given.items():
            if isinstance(value, bool) or not math.isfinite(value) or value < 0:
                raise RequestError(f"balance.{name}", wanted="a number >= 0", got=repr(value))
        if f_sums_to not in ("one", "k"):
            raise RequestError(
                "f_sums_to", wanted="'one' or 'k'", got=repr(f_sums_to), choices=("one", "k")
            )
        self.coefficients = {name: value for name, value in given.items() if value > 0}
        self.f_sums_to, self.accumulate, self.group = f_sums_to, accumulate, group
        self._loads: list[Tensor] = []

    def forward(
        self, routings: Sequence[Routing], mask_N: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return a scalar for each loss with a coefficient.

        Args:
            routings: What the model's routers decided, in the same order at every call.
            mask_N: bool, the rows that count; None for all.

        Raises:
            RequestError: A loss that a router cannot have: `load` where it added no noise in
                training, `selector_entropy` or `unreachable_mass` where it is not DSelect-k.
        """
        if not routings:
            return {}
        losses: dict[str, Tensor] = {}
        for name, coefficient in self.coefficients.items():
            if name == "load" and not self.training:
                continue  # no noise, no chance
            each = [
                self._loss(name, layer, routing, mask_N) for layer, routing in enumerate(routings)
            ]
            losses[name] = coefficient * torch.stack(each).mean()
        return losses

    def step_done(self) -> None:
        """Forget the micro-batches: the optimiser has made its step."""
        self._loads.clear()

    def _loss(self, name: str, layer: int, routing: Routing, mask_N: Tensor | None) -> Tensor:
        if name == "switch":
            return switch_loss(
                routing,
                mask_N,
                f_sums_to=self.f_sums_to,
                load_E=self._load_so_far(layer, routing, mask_N) if self.accumulate else None,
                group=self.group,
            )
        if name in _SUMS:
            return _SUMS[name](routing, mask_N, group=self.group)
        return _MEANS[name](routing, mask_N)

    def _load_so_far(self, layer: int, routing: Routing, mask_N: Tensor | None) -> Tensor:
        load_E = load(routing, mask_N, group=self.group)
        if not self.training:
            return load_E
        if layer == len(self._loads):
            self._loads.append(load_E)
        else:
            self._loads[layer] = self._loads[layer] + load_E
        return self._loads[layer]
