"""One layer's sums -> plain values: what `gates.json` says of weights, columns and health.

Shapes: G gates, E experts, S segments of a column.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_moe.gate_report.segments import Segments
from recsys_moe.gate_report.statistics import (
    adjusted_rand,
    coarse,
    effective,
    eta_squared,
    merged,
    quantile,
)
from recsys_moe.gate_report.sums import LayerSums
from recsys_moe.modules.gated import Layer
from recsys_moe.moe.anomalies import find_anomalies
from recsys_moe.moe.monitor_health import Health

FEWEST_ROWS, MOST_COLUMNS, MOST_SEGMENTS, BINS = 30, 5, 3, 20
Floats = NDArray[np.float64]


def layer_report(
    layer: Layer, sums: LayerSums, health: Health, segments: Sequence[Segments]
) -> dict[str, Any]:
    """Return all that the page says of a layer, but for its history and what ablation found."""
    columns = {
        entry.column: _column(layer, sums, entry, number) for number, entry in enumerate(segments)
    }
    return {
        **asdict(layer),
        "gate_weights": {gate: _weights(sums, g) for g, gate in enumerate(layer.gates)},
        "columns": columns,
        "serves": {
            gate: [_serves(sums, columns, g, e) for e in range(len(layer.experts))]
            for g, gate in enumerate(layer.gates)
        },
        "health": _health(health) | {"active_per_row": rounded(sums.active / sums.rows)},
        "anomalies": [asdict(anomaly) for anomaly in find_anomalies(health)],
    }


def _weights(sums: LayerSums, g: int) -> dict[str, Any]:
    """Return mean and spread of one gate's weights, a value for each expert."""
    mean_E = sums.weights_GE[g].numpy() / sums.rows
    variance_E = sums.squares_GE[g].numpy() / sums.rows - np.square(mean_E)
    top, histograms = float(sums.top_G[g]), sums.histogram_GEQ[g].numpy()
    total = mean_E.sum()
    return {
        "mean": numbers(mean_E),
        "share": numbers(mean_E / (total or 1.0)),
        "std": numbers(np.sqrt(variance_E.clip(min=0))),
        **{
            f"p{percent}": numbers(quantile(row_Q, percent / 100, top) for row_Q in histograms)
            for percent in (10, 50, 90)
        },
        "used": numbers(sums.used_GE[g].numpy() / sums.rows),
        "largest": numbers(sums.largest_GE[g].numpy() / sums.rows),
        "top": top,
        "histogram": [numbers(coarse(row_Q, BINS)) for row_Q in histograms],
        "effective_experts": rounded(effective(mean_E / total)) if total > 0 else 0.0,
    }


def _column(layer: Layer, sums: LayerSums, entry: Segments, number: int) -> dict[str, Any]:
    """Return a column's segments that have rows, and what the gates do in each of them."""
    rows_S = sums.rows_S[number].numpy()
    kept = np.flatnonzero(rows_S)
    gates = {}
    for g, gate in enumerate(layer.gates):
        sums_SE = sums.weights_SGE[number][:, g].numpy()
        squares_E, largest_SE = sums.squares_GE[g].numpy(), sums.largest_GSE[number][g].numpy()
        gates[gate] = {
            "mean": [numbers(sums_SE[s] / rows_S[s]) for s in kept],
            "eta_squared": numbers(eta_squared(rows_S, sums_SE, squares_E)),
            "agreement": rounded(adjusted_rand(largest_SE)),
            "agreement_joined": rounded(adjusted_rand(merged(largest_SE))),
        }
    return {
        "segments": [entry.names[s] for s in kept],
        "rows": [int(rows_S[s]) for s in kept],
        "gates": gates,
    }


def _serves(sums: LayerSums, columns: dict[str, Any], g: int, e: int) -> list[dict[str, Any]]:
    """Return the columns that explain an expert's weight best, with the segments it prefers."""
    gate, overall = sums.gates[g], float(sums.weights_GE[g, e]) / sums.rows
    found = []
    for name, column in columns.items():
        mine = column["gates"][gate]
        if mine["eta_squared"][e] is None or not overall:
            continue
        preferred = [
            {"segment": segment, "rows": rows, "mean": mean[e], "lift": rounded(mean[e] / overall)}
            for segment, rows, mean in zip(
                column["segments"], column["rows"], mine["mean"], strict=True
            )
            if rows >= FEWEST_ROWS and mean[e] > overall
        ]
        preferred.sort(key=lambda segment: -segment["lift"])
        found.append(
            {
                "column": name,
                "eta_squared": mine["eta_squared"][e],
                "segments": preferred[:MOST_SEGMENTS],
            }
        )
    return sorted(found, key=lambda column: -column["eta_squared"])[:MOST_COLUMNS]


def _health(health: Health) -> dict[str, Any]:
    total = sum(health.load) or 1.0
    return {
        "load": numbers(c / total for c in health.load),
        "fair_load": numbers(c / total for c in health.fair_load),
        "dead": list(health.dead()),
        "max_vio": rounded(health.max_vio),
        "gate_entropy": rounded(health.gate_entropy),
        "effective_experts": rounded(health.effective_experts),
    }


def numbers(values: Iterable[float]) -> list[float | None]:
    """Return values that JSON can hold."""
    return [rounded(float(value)) for value in values]


def rounded(value: float) -> float | None:
    """Return a number with seven digits, None for one that is not finite."""
    return float(f"{value:.7g}") if np.isfinite(value) else None
