"""What an expert is worth: predict without it, and see what becomes of each task's metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recsys_moe.batch import Batch
from recsys_moe.datamodule import Split
from recsys_moe.gate_report.layer_report import rounded
from recsys_moe.modules.gated import Layer
from recsys_moe.modules.multi_task import MultiTaskModel
from recsys_moe.predictions import evaluate_outputs
from recsys_moe.progress import progress
from recsys_moe.spec import FeatureSpec

METRICS = ("auc", "log_loss", "r2", "loss")
Columns = dict[str, NDArray[np.float64]]
Masks = Mapping[str, Mapping[str, NDArray[np.bool_]]]


def sample_rows(num_rows: int, most: int) -> NDArray[np.int64]:
    """Return all rows, or as many as allowed, always the same ones, in order."""
    if num_rows <= most:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(0).choice(num_rows, most, replace=False))


class Ablation:
    """Predictions for a sample of a split's rows, with all experts and without one of them."""

    def __init__(
        self, model: MultiTaskModel, data: Split, rows: NDArray[np.int64], batch_rows: int
    ):
        self.model, self.spec = model, data.spec
        parts = range(0, len(rows), batch_rows)
        self.batches = [data.batch(rows[start : start + batch_rows]) for start in parts]
        self.labels, self.known = _labels(self.batches, data.spec)

    def changes(self, layers: Sequence[Layer], masks: Masks) -> dict[str, Any]:
        """Return the metrics with all experts, and for each layer those without each expert.

        Args:
            layers: The model's layers.
            masks: By column and segment, the sampled rows in it, (N,).
        """
        with progress("ablation", 1 + sum(len(layer.experts) for layer in layers), "runs") as done:
            whole = self._measure(None, masks)
            done(1)
            found: dict[str, Any] = {"metrics": whole["outputs"], "layers": {}}
            for layer in layers:
                found["layers"][layer.name] = []
                for expert in range(len(layer.experts)):
                    without = self._measure((layer.name, expert), masks)
                    found["layers"][layer.name].append(_difference(without, whole))
                    done(1)
        return found

    def _measure(self, ablated: tuple[str, int] | None, masks: Masks) -> dict[str, Any]:
        logits = self._logits(ablated)
        outputs = _metrics(evaluate_outputs(self.spec, logits, self.labels, self.known))
        segments = {
            column: {segment: self._within(logits, mask_N) for segment, mask_N in parts.items()}
            for column, parts in masks.items()
        }
        return {"outputs": outputs, "segments": segments}

    def _within(self, logits: Columns, mask_N: NDArray[np.bool_]) -> dict[str, Any]:
        """Return the loss of every output over some of the rows."""
        logits, labels, known = (_some(c, mask_N) for c in (logits, self.labels, self.known))
        found = _metrics(evaluate_outputs(self.spec, logits, labels, known))
        return {
            output: {"loss": metrics.get("log_loss", metrics.get("loss"))}
            for output, metrics in found.items()
        }

    @torch.no_grad()
    def _logits(self, ablated: tuple[str, int] | None) -> Columns:
        self.model.mixture.ablated = ablated
        try:
            parts = [self.model(batch.codes, batch.numbers) for batch in self.batches]
        finally:
            self.model.mixture.ablated = None
        return {task: torch.cat([p[task] for p in parts]).double().numpy() for task in parts[0]}


def _labels(batches: Sequence[Batch], spec: FeatureSpec) -> tuple[Columns, Columns]:
    def joined(name: str) -> Columns:
        return {
            task: torch.cat([getattr(batch, name)[task] for batch in batches]).double().numpy()
            for task in spec.task_names
        }

    return joined("labels"), joined("known")


def _some(columns: Columns, mask_N: NDArray[np.bool_]) -> Columns:
    return {name: values[mask_N] for name, values in columns.items()}


def _metrics(evaluated: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        output: {name: metrics[name] for name in METRICS if name in metrics}
        for output, metrics in evaluated.items()
    }


def _difference(without: Any, whole: Any) -> Any:
    """Return the second taken from the first, number by number; None where either is None."""
    if isinstance(whole, dict):
        return {key: _difference(without[key], value) for key, value in whole.items()}
    return None if without is None or whole is None else rounded(without - whole)
