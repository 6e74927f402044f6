r"""Which form of dispatch is fastest: a table of measurements, and the nearest line of it.

`benchmarks/moe_speed.py --choice` measures a grid of settings, forward and backward, and prints the
fewest lines whose nearest one names, at every setting, a form that is about the fastest.

Shapes: N rows, D input width, E experts, K slots a row.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from recsys_moe.moe.grouped import computed_in
from recsys_moe.moe.routing import Routing


class Sized(Protocol):
    """What the choice asks of a bank: how large an expert is."""

    num_experts: int

    @property
    def weights_per_expert(self) -> int:
        """The number of parameters of one expert."""


class Line(NamedTuple):
    """One measured setting, forward and backward, and the form that was fastest there."""

    rows: int
    weights: int  # of one expert
    experts: int
    slots: int
    form: str


# one thread of a shared CPU, float32, torch 2.13; within 1.3 times the best at 205 settings
CPU = (
    Line(32, 8192, 4, 1, "dense"),
    Line(32, 8192, 4, 2, "split"),
    Line(32, 8192, 4, 4, "dense"),
    Line(32, 8192, 16, 2, "grouped"),
    Line(32, 8192, 16, 4, "grouped"),
    Line(32, 8192, 16, 6, "dense"),
    Line(32, 8192, 16, 8, "grouped"),
    Line(32, 65536, 64, 2, "grouped"),
    Line(32, 262144, 16, 4, "grouped"),
    Line(256, 8192, 4, 1, "split"),
    Line(256, 8192, 8, 1, "grouped"),
    Line(256, 8192, 64, 8, "grouped"),
    Line(256, 65536, 16, 4, "grouped"),
    Line(256, 65536, 16, 8, "split"),
    Line(2048, 8192, 64, 1, "grouped"),
    Line(8192, 8192, 64, 8, "split"),
)
# an H100, bfloat16, torch 2.11; within 1.1 times the best at 348 settings
CUDA_BF16 = (
    Line(256, 65536, 64, 2, "dense"),
    Line(256, 1048576, 64, 2, "dense"),
    Line(2048, 65536, 16, 4, "dense"),
    Line(2048, 65536, 64, 2, "dense"),
    Line(2048, 262144, 64, 2, "dense"),
    Line(2048, 262144, 64, 6, "dense"),
    Line(2048, 1048576, 16, 2, "dense"),
    Line(2048, 1048576, 64, 2, "grouped"),
    Line(8192, 8192, 64, 1, "dense"),
    Line(8192, 8192, 64, 6, "dense"),
    Line(8192, 65536, 16, 1, "dense"),
    Line(8192, 65536, 64, 6, "dense"),
    Line(8192, 262144, 4, 2, "dense"),
    Line(8192, 262144, 16, 2, "dense"),
    Line(8192, 262144, 64, 2, "grouped"),
    Line(8192, 262144, 64, 6, "grouped"),
    Line(8192, 1048576, 64, 8, "grouped"),
    Line(65536, 8192, 4, 1, "dense"),
    Line(65536, 8192, 16, 2, "dense"),
    Line(65536, 8192, 64, 1, "grouped"),
    Line(65536, 8192, 64, 8, "grouped"),
    Line(65536, 65536, 4, 2, "dense"),
    Line(65536, 65536, 16, 8, "grouped"),
    Line(65536, 65536, 64, 2, "grouped"),
    Line(65536, 65536, 64, 6, "grouped"),
    Line(65536, 262144, 8, 1, "grouped"),
    Line(65536, 262144, 8, 8, "dense"),
    Line(65536, 262144, 16, 6, "grouped"),
    Line(65536, 1835008, 8, 2, "grouped"),
    Line(16384, 1048576, 128, 4, "grouped"),
    Line(8192, 117440512, 8, 2, "grouped"),
)


def choose(x_ND: Tensor, routing: Routing, bank: Sized) -> str:
    """Return the form of the nearest measured setting, by the ratios of the sizes.

    It never waits for the device: on CUDA, types other than bfloat16 are computed densely, as
    PyTorch's grouped product is not a single launch there. While a graph is traced the number of
    rows is open; then it is dense, but for few of many experts in bfloat16 on a CPU. On CUDA,
    `grouped` inside a compiled graph has stopped the device (torch 2.11), so it is never chosen.

    Args:
        x_ND: The rows; autocast's type counts, if it is on.
        routing: A sparse routing.
        bank: The experts.

    Returns:
        `dense`, `split` or `grouped`.
    """
    kind, dtype = x_ND.device.type, computed_in(x_ND)
    num_experts, num_slots = routing.num_experts, routing.weights.shape[-1]
    if torch.compiler.is_exporting() or (kind != "cpu" and dtype != torch.bfloat16):
        return "dense"
    if torch.compiler.is_compiling():
        traceable = kind == "cpu" and dtype == torch.bfloat16
        return "grouped" if traceable and num_experts >= 4 * num_slots else "dense"
    form = _nearest(kind, x_ND.shape[0], bank.weights_per_expert, num_experts, num_slots)
    return "split" if form == "grouped" and dtype == torch.float64 else form


def nearest(lines: Iterable[Line], rows: int, weights: int, experts: int, slots: int) -> str:
    """Return the form of the line at the least distance, counted in powers of two."""
    return min(lines, key=lambda line: _distance(line, rows, weights, experts, slots)).form


@lru_cache(maxsize=1024)
def _nearest(kind: str, rows: int, weights: int, experts: int, slots: int) -> str:
    return nearest(CPU if kind == "cpu" else CUDA_BF16, rows, weights, experts, slots)


def _distance(line: Line, rows: int, weights: int, experts: int, slots: int) -> float:
    steps = [_log2(line.rows) - _log2(rows), _log2(line.weights) - _log2(weights)]
    steps.append(_log2(line.experts) - _log2(experts))
    share = _log2(line.slots) - _log2(line.experts) - _log2(slots) + _log2(experts)
    return sum(step**2 for step in steps) + 4 * share**2


def _log2(size: int) -> float:
    return math.log2(max(size, 1))
