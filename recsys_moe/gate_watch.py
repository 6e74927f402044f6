"""What a run keeps of its gates: gates.csv as it trains, warnings, and health.json at the end."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recsys_moe.batch import Batch
from recsys_moe.errors import CollapseError
from recsys_moe.files import write_json
from recsys_moe.modules.gated import Gated, Layer, monitor_of
from recsys_moe.modules.mixtures import PLE, Mixture, MMoE
from recsys_moe.moe.anomalies import Anomaly, fail_on_collapse, find_anomalies
from recsys_moe.moe.monitor_health import Health
from recsys_moe.progress import warn
from recsys_moe.run_files import MetricsFile

SAMPLE_ROWS = 256
"""The validation rows on which experts' outputs are compared, once an epoch."""


class GateWatch:
    """Add up what the gates of a model decide, write it down, and judge every epoch.

    It holds no parameter and is no module: a run's weights are the same with it and without. Its
    state is part of the checkpoints, so that a resumed run writes what an undisturbed one does.

    Attributes:
        file: gates.csv, a row per log interval: `share/LAYER/GATE/EXPERT`, the part of a gate's
            weights that an expert got.
    """

    def __init__(
        self, model: nn.Module, output: Path, *, collapse_share: float | None = None
    ) -> None:
        """Prepare a Monitor per layer; nothing is written yet.

        Args:
            model: The model, with the `layers` and the `mixture` of `MultiTaskModel`.
            output: The run's folder.
            collapse_share: The share of dead experts in a layer's epoch from which on the run
                stops; None never stops it.
        """
        self.model, self.output, self.collapse_share = model, output, collapse_share
        self.layers: Sequence[Layer] = model.layers()  # type: ignore[operator]
        self.monitors = [monitor_of(layer, sample_rows=SAMPLE_ROWS) for layer in self.layers]
        self.file = MetricsFile(output / "gates.csv")
        self.group: dist.ProcessGroup | None = None
        self.collapsed: str | None = None
        self._epoch: list[Health] = []
        self._said: list[str] = []
        self._report: dict[str, Any] = {}

    def start(self, device: torch.device, group: dist.ProcessGroup | None) -> None:
        """Move to the model's device; `group` are the processes whose rows count too."""
        self.group = group
        for monitor in self.monitors:
            monitor.to(device)

    def update(self, gated: Sequence[Gated]) -> None:
        """Add a batch; nothing waits for the device."""
        for monitor in self.monitors:
            monitor.update(
                {each.gate: each.routing for each in gated if each.layer == monitor.name}
            )

    def log(self, step: int) -> dict[str, float]:
        """End an interval: a row of gates.csv, and five numbers a layer for metrics.csv."""
        healths = [monitor.read(group=self.group) for monitor in self.monitors]
        pairs = zip(self._epoch or healths, healths, strict=True)
        self._epoch = [so_far + new for so_far, new in pairs] if self._epoch else healths
        shares: dict[str, float] = {}
        numbers: dict[str, float] = {}
        for health in healths:
            for gate, row in zip(health.tasks, health.shares, strict=True):
                shares |= {
                    f"share/{health.name}/{gate}/{e}": round(v, 6) for e, v in enumerate(row)
                }
            numbers |= {f"gates/{health.name}/{key}": v for key, v in health.summary().items()}
        if shares:
            self.file.log_metrics(shares, step)
        return numbers

    def close_epoch(self, epoch: int, batch: Batch) -> None:
        """Judge an epoch: warn of each anomaly once a run, and note a collapse.

        Args:
            epoch: Its number, from 0.
            batch: The first rows of the validation split, on which experts' outputs are compared.
        """
        if not self._epoch:
            return  # no gates, or nothing was trained
        layers, outputs = [], expert_outputs(self.model, batch)
        for layer, monitor, health, h_NEO in zip(
            self.layers, self.monitors, self._epoch, outputs, strict=True
        ):
            if h_NEO is not None:
                monitor.observe(h_NEO)
                health = health + monitor.read()  # no row, and the outputs
            anomalies = find_anomalies(health)
            for anomaly in anomalies:
                self._warn(layer, anomaly)
            layers.append(_described(layer, health, anomalies))
            self._judge(health)
        self._report, self._epoch = {"epoch": epoch, "layers": layers}, []

    def finish(self) -> None:
        """Write health.json.

        Raises:
            CollapseError: The run was stopped because its routing had collapsed.
        """
        if self._report:
            write_json(self.output / "health.json", self._report)
        if self.collapsed is not None:
            raise CollapseError(self.collapsed)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors only."""
        return {
            "sums": [monitor.sums.cpu() for monitor in self.monitors],
            "epoch": [asdict(health) for health in self._epoch],
            "said": list(self._said),
            "report": self._report,
            "collapsed": self.collapsed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        for monitor, sums in zip(self.monitors, state["sums"], strict=True):
            monitor.sums.copy_(sums)
        self._epoch = [Health(**health) for health in state["epoch"]]
        self._said, self._report = list(state["said"]), state["report"]
        self.collapsed = state["collapsed"]

    def _warn(self, layer: Layer, anomaly: Anomaly) -> None:
        key = f"{layer.name}, {anomaly.name}, {anomaly.experts}"
        if key not in self._said:
            self._said.append(key)
            names = ", ".join(f"{e} is {layer.experts[e]!r}" for e in anomaly.experts)
            warn("train", f"{anomaly.message} ({names})")

    def _judge(self, health: Health) -> None:
        if self.collapse_share is not None and self.collapsed is None:
            try:
                fail_on_collapse(health, dead_share=self.collapse_share)
            except CollapseError as error:
                self.collapsed = str(error)


@torch.no_grad()
def expert_outputs(model: nn.Module, batch: Batch) -> list[Tensor | None]:
    """Return each layer's experts' outputs on the first rows of a batch, (N, E, O), no dropout.

    None for a layer whose experts see no single rows. Nothing about the model changes.
    """
    mixture = getattr(model, "mixture", None)
    layers = _banks(mixture) if isinstance(mixture, Mixture) else []
    if not layers or not isinstance(mixture, Mixture):
        return []
    found: dict[int, Tensor] = {}

    def keep(bank: nn.Module, _: Any, h_NEO: Tensor) -> None:
        found[id(bank)] = h_NEO

    hooks = [bank.register_forward_hook(keep) for banks in layers for bank in banks]
    modes, dispatch = [(module, module.training) for module in model.modules()], mixture.dispatch
    try:
        model.eval()
        mixture.dispatch = "dense"
        model(batch.codes[:SAMPLE_ROWS], batch.numbers[:SAMPLE_ROWS])
    finally:
        mixture.dispatch = dispatch
        for module, training in modes:
            module.training = training
        for hook in hooks:
            hook.remove()
    return [
        torch.cat([found[id(bank)] for bank in banks], dim=1)
        if all(id(bank) in found for bank in banks)
        else None
        for banks in layers
    ]


def _banks(mixture: Mixture) -> list[list[nn.Module]]:
    """Return the banks of each layer, their experts in the layer's order."""
    if isinstance(mixture, MMoE):
        return [[mixture.bank]]
    if isinstance(mixture, PLE):
        return [[*level.task_banks, level.shared_bank] for level in mixture._levels]
    return []


def _described(layer: Layer, health: Health, anomalies: Sequence[Anomaly]) -> dict[str, Any]:
    """Return what health.json says of a layer's epoch."""
    total = sum(health.load) or 1.0
    return {
        "name": layer.name,
        "experts": list(layer.experts),
        "load": _rounded([c / total for c in health.load]),
        "dead_experts": list(health.dead()),
        **{
            key: round(value, 6) for key, value in health.summary().items() if key != "dead_experts"
        },
        "shares": {
            gate: _rounded(row) for gate, row in zip(health.tasks, health.shares, strict=True)
        },
        "zero_share": _rounded(health.zero_share),
        "scale": _rounded(health.scale),
        "anomalies": [
            {"name": each.name, "experts": list(each.experts), "message": each.message}
            for each in anomalies
        ],
    }


def _rounded(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else [round(value, 6) for value in values]
