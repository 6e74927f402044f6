"""Vectors that a service might send: whole, missing in every way, of no length and of great."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from recsys_moe.spec import Column, FeatureSpec, Vector

_BROKEN = [None, float("nan"), float("inf"), float("-inf")]
_SMALL = [0.0, -0.0, 1.0, -1.0, 8.0, 0.5, 1e-45, -1e-30, 1e-7]
_LARGE = [1e10, -1e10, 3.4e38, -3.4e38, 16777217.0]


def fuzzed_vectors(
    generator: np.random.Generator,
    spec: FeatureSpec,
    column: Column,
    real: Sequence[list[float | None] | None],
    rows: int,
) -> list[list[float | None] | None]:
    """Return vectors of a column's length, each drawn on its own.

    They are null, broken by one element, all NaN, zero, next to zero, normal, made of awkward
    elements, or real ones. Those that are made have the size of the real ones; huge elements come
    only where every feature divides by the length, since no model can say anything of 1e38.

    Args:
        generator: Where chance comes from.
        spec: The feature spec, which says what reads the column.
        column: The column.
        real: Values of the column to draw from too; there may be none.
        rows: How many to make.
    """
    dim = column.dim or 0
    readers = [f for f in spec.features if isinstance(f, Vector) and f.column == column.name]
    scaled = bool(readers) and all(f.normalize == "l2" for f in readers)
    usual = _usual_size(real)
    awkward = np.array([*(x * usual for x in _SMALL), *(_LARGE if scaled else [])], np.float32)

    def normal(size: float = usual) -> list[Any]:
        numbers = generator.normal(size=dim).clip(-8, 8) * size
        return [float(number) for number in numbers.astype(np.float32)]

    def draw(kind: int) -> list[Any] | None:
        if kind == 0:
            return None
        if kind == 1:
            broken = normal()
            broken[generator.integers(dim)] = _BROKEN[generator.integers(len(_BROKEN))]
            return broken
        if kind == 2:
            return [float("nan")] * dim
        if kind == 3:
            return [0.0] * dim
        if kind == 4:
            return normal(10.0 ** -generator.integers(6, 40))
        if kind == 5:
            return [float(number) for number in generator.choice(awkward, dim)]
        return real[int(generator.integers(len(real)))] if len(real) and kind < 9 else normal()

    return [draw(int(kind)) for kind in generator.integers(11, size=rows)]


def _usual_size(real: Sequence[list[float | None] | None]) -> float:
    """Return the root mean square of the finite elements of real vectors, 1 if there is none."""
    elements = np.array([x for vector in real for x in vector or [] if x is not None], np.float64)
    elements = elements[np.isfinite(elements)]
    return float(np.sqrt(np.square(elements).mean())) or 1.0 if len(elements) else 1.0
