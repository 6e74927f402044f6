"""The gates over time, from the `gates.csv` that training leaves in a run's folder."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys_moe.gate_report.layer_report import numbers
from recsys_moe.modules.gated import Layer

MOST_POINTS = 200


def history(path: Path, layer: Layer) -> dict[str, Any] | None:
    """Return steps and the gates' mean shares by expert at each, None where nothing was kept.

    Column `share/LAYER/GATE/3` is the share of expert 3; beyond 200 steps, evenly spaced ones.
    """
    if not path.exists():
        return None
    frame = pl.read_csv(path, infer_schema_length=None)
    experts = range(len(layer.experts))
    names = {gate: [f"share/{layer.name}/{gate}/{e}" for e in experts] for gate in layer.gates}
    gates = {gate: columns for gate, columns in names.items() if {*columns} <= {*frame.columns}}
    if not gates or "step" not in frame.columns:
        return None
    wanted = ["step", *(column for columns in gates.values() for column in columns)]
    frame = frame.select(wanted).drop_nulls()
    if not frame.height:
        return None
    places = np.linspace(0, frame.height - 1, min(frame.height, MOST_POINTS)).round().astype(int)
    frame = frame[places.tolist()]
    return {
        "step": frame["step"].to_list(),
        "gates": {
            gate: [numbers(row) for row in frame.select(columns).rows()]
            for gate, columns in gates.items()
        },
    }
