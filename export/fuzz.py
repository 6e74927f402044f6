"""Raw rows that a service might send, the awkward ones above all.

Each generator is seeded and reads only the spec, its vocabularies and the run's sample of real
rows, so that the same run is judged on the same rows each time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from export.columns import polars_type
from export.fuzzed_vectors import fuzzed_vectors
from export.vocabulary import read_vocabulary
from recsys_moe.expression import Number, Text, nodes_of, parse
from recsys_moe.spec import INT64_MISSING, Bucketized, Categorical, Column, FeatureSpec, Numeric

_STRINGS = [
    None, "", " ", "a\x00b", "\x00", "\ufeff", "ünïcödé", "日本語", "🙂🙃", "e\u0301", "é", "null",
    "\0null", "\x1f", "a\x1fb", "None", "nan", "0", "-1", "\\0null", "a\nb", '"', "x" * 1000,
    "İ", "\U0010ffff",
]  # fmt: skip
_INTEGERS = [
    None, INT64_MISSING, INT64_MISSING + 1, INT64_MISSING + 511, 2**63 - 1, 2**53, 2**53 + 1,
    -(2**53) - 1, 2**31, 2**32, -(2**31), 0, -1, 1, 10**18,
]  # fmt: skip
_FLOATS = [
    None, float("nan"), float("inf"), float("-inf"), 0.0, -0.0, -1.0, 1e-45, 1e-30, 3.4e38, -3.4e38,
    -1e-30, 0.5, 16777217.0, 1e10,
]  # fmt: skip
_MAX_KNOWN = 20_000


def fuzzed_rows(
    spec: FeatureSpec, folder: Path, sample: pl.DataFrame, rows: int, *, seed: int = 0
) -> pl.DataFrame:
    """Return rows with the spec's columns, each value drawn on its own.

    About half the values come from the sample or a vocabulary, the others are missing, unseen, at
    the edge of their type, at and beside bucket edges; lists are null, empty and over-long too.

    Args:
        spec: The feature spec.
        folder: The folder that its vocabulary paths are relative to.
        sample: Real rows; a column that it lacks is drawn from the vocabularies alone.
        rows: How many rows to make.
        seed: Of the generator.
    """
    generator = np.random.default_rng(seed)
    columns = {}
    for column in spec.columns:
        if column.dim is not None:
            real = sample[column.name].to_list() if column.name in sample.columns else []
            found = fuzzed_vectors(generator, spec, column, real, rows)
            columns[column.name] = pl.Series(column.name, found, dtype=polars_type(column))
            continue
        pools = _pools(spec, folder, sample, column)
        if column.is_list:
            kept = [f.num_slots for f in spec.code_features if column.name in f.columns]
            values = _lists(generator, column, pools, rows, kept or [1])
        else:
            values = _scalars(generator, column, pools, rows)
        columns[column.name] = pl.Series(column.name, values, dtype=polars_type(column))
    return pl.DataFrame(columns)


def missing_rows(spec: FeatureSpec, rows: int) -> pl.DataFrame:
    """Return rows in which every value is null."""
    return pl.DataFrame(
        {column.name: [None] * rows for column in spec.columns},
        schema={column.name: polars_type(column) for column in spec.columns},
    )


def _pools(
    spec: FeatureSpec, folder: Path, sample: pl.DataFrame, column: Column
) -> list[list[Any]]:
    """Return kinds of values to choose from: real, listed, near an edge, awkward."""
    awkward: dict[str, list[Any]] = {
        "string": _STRINGS,
        "int64": _INTEGERS,
        "float32": _FLOATS,
    }
    pools = [awkward[column.type]]
    if column.name in sample.columns:
        real = sample[column.name]
        real = real.list.explode(keep_nulls=False, empty_as_null=False) if column.is_list else real
        pools += [real.to_list()] * 2
    for feature in spec.features:
        if column.name not in feature.columns:
            continue
        if isinstance(feature, Numeric | Bucketized) and feature.expression is not None:
            pools.append(_mentioned(feature.expression, column))
            continue
        if isinstance(feature, Categorical):
            listed = read_vocabulary(folder, spec.table(feature.table))
            pools.append([*listed.head(_MAX_KNOWN), *listed.tail(_MAX_KNOWN)])
        elif isinstance(feature, Bucketized):
            pools.append(_near(feature.edges, column))
        elif isinstance(feature, Numeric):
            pools.append(_near([*_spread(feature), *feature.bounds], column))
    return [pool for pool in pools if pool]


def _mentioned(expression: str, column: Column) -> list[Any]:
    """Return the values of a column's type that an expression compares with or adds."""
    literals = [node for node in nodes_of(parse(expression)) if isinstance(node, Number | Text)]
    if column.type == "string":
        return [node.value for node in literals if isinstance(node, Text)]
    numbers = [node.value for node in literals if isinstance(node, Number)]
    return _near([number for number in numbers if abs(number) < 1e38], column)


def _spread(feature: Numeric) -> npt.NDArray[np.float64]:
    """Return raw numbers from beyond one end of the scaled range to beyond the other."""
    scaled = feature.center + np.arange(-12, 13) / (feature.scale or 1.0)
    if feature.transform == "sqrt":
        return np.square(scaled)
    with np.errstate(over="ignore"):
        return np.expm1(scaled) if feature.transform == "log1p" else scaled


def _near(points: Sequence[float], column: Column) -> list[Any]:
    """Return numbers and their neighbours of the column's type."""
    finite = np.array(points, np.float32)
    finite = finite[np.isfinite(finite)]
    if column.type == "int64":
        whole = np.clip(finite.astype(np.float64), -(2.0**62), 2.0**62).astype(np.int64)
        return [*(whole - 1).tolist(), *whole.tolist(), *(whole + 1).tolist()]
    below, above = (np.nextafter(finite, np.float32(side)) for side in (-np.inf, np.inf))
    return [*below.tolist(), *finite.tolist(), *above.tolist()]


def _scalars(
    generator: np.random.Generator, column: Column, pools: list[list[Any]], rows: int
) -> list[Any]:
    kinds = generator.integers(len(pools) + 1, size=rows)
    places = generator.integers(2**31, size=rows)
    return [
        _unseen(column, int(place)) if kind == len(pools) else pools[kind][place % len(pools[kind])]
        for kind, place in zip(kinds, places, strict=True)
    ]


def _unseen(column: Column, number: int) -> str | int | float:
    if column.type == "string":
        return f"unseen {number}" + "é" * (number % 5)
    return number * 4_294_967_291 % 2**62 if column.type == "int64" else number / 1e4


def _lists(
    generator: np.random.Generator,
    column: Column,
    pools: list[list[Any]],
    rows: int,
    kept: Sequence[int],
) -> list[list[Any] | None]:
    """Return lists, null, empty, and as long as a feature keeps, one less and one more."""
    near = {length + step for length in kept for step in (-1, 0, 1)}
    lengths = generator.choice(sorted({-1, 0, 1, 2, *near, 2 * max(kept) + 3}), size=rows)
    values = iter(_scalars(generator, column, pools, int(lengths.clip(min=0).sum())))
    return [None if n < 0 else [next(values) for _ in range(n)] for n in lengths]
