"""Read a run's gates over a split: `gates.json`, all numbers, and `gates.html`, to look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recsys_moe.checkpoint import load_model
from recsys_moe.datamodule import Split
from recsys_moe.errors import RequestError
from recsys_moe.files import SUCCESS, read_json, sha256_file, write_json, write_text
from recsys_moe.gate_report.ablation import Ablation, sample_rows
from recsys_moe.gate_report.history import history
from recsys_moe.gate_report.layer_report import layer_report
from recsys_moe.gate_report.page import page
from recsys_moe.gate_report.segments import Prepared, Segments
from recsys_moe.gate_report.sums import LayerSums
from recsys_moe.modules.gated import Gated, monitor_of
from recsys_moe.modules.multi_task import MultiTaskModel
from recsys_moe.moe.monitor import Monitor
from recsys_moe.moe.routing import Routing
from recsys_moe.progress import progress

VERSION = 1
BATCH_ROWS = 8192
Codes = list[NDArray[np.int64]]


def write_report(
    run: Path, features: Path, split: str, segments: Sequence[str], ablation_rows: int
) -> Path:
    """Write RUN/gates.json and RUN/gates.html and return the second; unchanged ones stay.

    Args:
        run: A finished run.
        features: The features it was trained on, or rows encoded like them.
        split: The split to read.
        segments: Columns of `prepared/SPLIT` to look at closely.
        ablation_rows: The most rows to predict again without each expert; 0 leaves that out.

    Raises:
        RequestError: A split or column that is not there, or a model without gates.
    """
    identity = {
        "version": VERSION,
        "checkpoint": sha256_file(run / "best.ckpt"),
        "features": sha256_file(features / SUCCESS),
        "history": sha256_file(run / "gates.csv") if (run / "gates.csv").exists() else None,
        "split": split,
        "asked": list(segments),
        "ablation_rows": ablation_rows,
    }
    known, shown = run / "gates.json", run / "gates.html"
    if known.exists() and shown.exists() and identity.items() <= read_json(known).items():
        return shown
    if isinstance(ablation_rows, bool) or not isinstance(ablation_rows, int) or ablation_rows < 0:
        wanted = "a number of rows, 0 for no ablation"
        raise RequestError("ablation_rows", wanted=wanted, got=repr(ablation_rows))
    model, spec = load_model(run)
    data, prepared = Split(features, split, spec), Prepared(features, split)
    if not isinstance(model, MultiTaskModel) or not model.layers():
        raise RequestError(
            "gates=true", wanted="a model with gates (mmoe, ple, moe)", got="one without"
        )
    cuts = prepared.segments(segments, spec)
    report: dict[str, Any] = {
        "run": run.name,
        "dataset": spec.dataset,
        "rows": data.num_rows,
        **identity,
    }
    report |= read_gates(model, data, prepared, cuts, len({*segments}), ablation_rows)
    for layer, entry in zip(model.layers(), report["layers"], strict=True):
        entry["history"] = history(run / "gates.csv", layer)
    write_json(known, report)
    write_text(shown, page(report))
    return shown


def read_gates(
    model: MultiTaskModel,
    data: Split,
    prepared: Prepared,
    segments: Sequence[Segments],
    num_asked: int,
    ablation_rows: int,
) -> dict[str, Any]:
    """Return what a model's gates do on a split, layer by layer, and what ablation found.

    Args:
        model: A model with gates, in eval mode.
        data: The split's tensors.
        prepared: The same rows' raw columns.
        segments: How those are cut; the first `num_asked` are followed in the ablation too.
        num_asked: How many that are.
        ablation_rows: The most rows to predict again without each expert.
    """
    layers = model.layers()
    sums = {
        layer.name: LayerSums(layer.gates, layer.visible, [len(s.names) for s in segments])
        for layer in layers
    }
    monitors = {layer.name: monitor_of(layer) for layer in layers}
    rows = sample_rows(data.num_rows, ablation_rows)
    sampled, gated = _add_all(model, data, prepared, segments, sums, monitors, rows)
    reports = [
        layer_report(layer, sums[layer.name], monitors[layer.name].read(), segments)
        for layer in layers
    ]
    together = sorted({type(g.router).__name__ for g in gated if not g.router.exportable})
    found: dict[str, Any] = {"layers": reports, "depends_on_batch": together, "ablation": None}
    fixed = [g.layer for g in gated if g.router.mixes]
    movable = [layer for layer in layers if layer.name not in fixed]
    if len(rows) and movable:
        masks = {
            segments[c].column: {
                name: codes_N == s
                for s, name in enumerate(segments[c].names)
                if (codes_N == s).any()
            }
            for c, codes_N in enumerate(sampled[:num_asked])
        }
        changes = Ablation(model, data, rows, BATCH_ROWS).changes(movable, masks)
        found["ablation"] = {"rows": len(rows), **changes}
    return found


@torch.no_grad()
def _add_all(
    model: MultiTaskModel,
    data: Split,
    prepared: Prepared,
    segments: Sequence[Segments],
    sums: dict[str, LayerSums],
    monitors: dict[str, Monitor],
    rows: NDArray[np.int64],
) -> tuple[Codes, tuple[Gated, ...]]:
    """Add every batch to the sums; return the segments of some rows, and the last decisions."""
    start, kept = 0, [[np.empty(0, np.int64) for _ in segments]]
    gated: tuple[Gated, ...] = ()
    more = False
    with progress("gates", data.num_rows) as done:
        for num_rows, codes in prepared.batches(segments, BATCH_ROWS):
            stop = start + num_rows
            if more := stop > data.num_rows:
                break
            batch = data.batch(slice(start, stop))
            gated = model.routed(batch.codes, batch.numbers)[1]
            for name, layer in sums.items():
                routings: dict[str, Routing] = {g.gate: g.routing for g in gated if g.layer == name}
                layer.add(routings, codes)
                monitors[name].update(routings)
            first, last = np.searchsorted(rows, [start, stop])
            kept.append([codes_N[rows[first:last] - start] for codes_N in codes])
            done(stop - start)
            start = stop
    if start != data.num_rows:
        folder = f"prepared/{prepared.split}"
        wanted = f"{data.num_rows:,} rows, as its tensors"
        raise RequestError(folder, wanted=wanted, got="more" if more else f"{start:,}")
    return [np.concatenate(parts) for parts in zip(*kept, strict=True)], gated
