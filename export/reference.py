"""A second implementation of the feature spec, in plain Python, that the parity gate leans on.

It shares nothing with the graph or with the features command: dictionaries, loops and its own
MurmurHash3, read off the contract. It is slow and meant to be obvious.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from export.expression_reference import evaluate
from recsys_moe.expression import parse
from recsys_moe.spec import (
    INT64_MISSING,
    Bucketized,
    Categorical,
    Crossed,
    FeatureSpec,
    Numeric,
    Table,
    Vector,
)

Value = str | int | float | None


class ReferenceEncoder:
    """Encode raw rows by the feature spec, one value at a time."""

    def __init__(self, spec: FeatureSpec, folder: Path) -> None:
        """Read the vocabularies.

        Args:
            spec: The feature spec.
            folder: The folder that its vocabulary paths are relative to.
        """
        self.spec = spec
        self.lookups = {table.name: _lookup(table, folder) for table in spec.tables}

    def __call__(
        self, frame: pl.DataFrame
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Return codes [rows, num_slots] and numbers [rows, num_numbers] of a frame."""
        codes = np.zeros((frame.height, self.spec.num_slots), np.int32)
        numbers = np.zeros((frame.height, self.spec.num_numbers), np.float32)
        slot = place = 0
        for feature in self.spec.features:
            if isinstance(feature, Crossed):
                parts = zip(*(frame[name].to_list() for name in feature.columns), strict=True)
                buckets = self.spec.table(feature.table).num_oov
                codes[:, slot] = [_cross(values, buckets) for values in parts]
                slot += 1
                continue
            values = _values(frame, feature)
            if isinstance(feature, Numeric):
                for row, value in enumerate(values):
                    numbers[row, place : place + feature.num_numbers] = _number(value, feature)
                place += feature.num_numbers
            elif isinstance(feature, Vector):
                for row, value in enumerate(values):
                    numbers[row, place : place + feature.num_numbers] = _vector(value, feature)
                place += feature.num_numbers
            else:
                for row, value in enumerate(values):
                    codes[row, slot : slot + feature.num_slots] = self._codes(value, feature)
                slot += feature.num_slots
        return codes, numbers

    def _codes(self, value: Any, feature: Categorical | Bucketized) -> list[int]:
        if isinstance(feature, Bucketized):
            return [_bucket(value, feature)]
        lookup = self.lookups[feature.table]
        if feature.max_len is None:
            return [lookup(value)]
        elements = value or []
        surplus = max(len(elements) - feature.max_len, 0)
        elements = elements[surplus:] if feature.keep == "last" else elements[: feature.max_len]
        kept = [lookup(element) for element in elements]
        return kept + [0] * (feature.max_len - len(kept))


def _values(frame: pl.DataFrame, feature: Categorical | Bucketized | Numeric | Vector) -> list[Any]:
    if isinstance(feature, Numeric | Bucketized) and feature.expression is not None:
        tree, rows = parse(feature.expression), frame.select(feature.columns)
        return [evaluate(tree, row) for row in rows.iter_rows(named=True)]
    return frame[feature.columns[0]].to_list()


def _lookup(table: Table, folder: Path) -> Callable[[Value], int]:
    listed: dict[Value, int] = {}
    if table.vocabulary is not None:
        rows = pl.read_parquet(folder / table.vocabulary).select("value", "code").iter_rows()
        listed = dict(rows)

    def code(value: Value) -> int:
        if value is None or value == "" or value == INT64_MISSING:
            return 1
        known = listed.get(value)
        return 2 + murmur3_32(str(value).encode()) % table.num_oov if known is None else known

    return code


def _cross(values: Sequence[Value], num_buckets: int) -> int:
    known = [value not in (None, "", INT64_MISSING) for value in values]
    if not any(known):
        return 1
    texts = [str(v) if is_known else "\0null" for v, is_known in zip(values, known, strict=True)]
    return 2 + murmur3_32("\x1f".join(texts).encode()) % num_buckets


def _number(value: Value, feature: Numeric) -> list[float]:
    number = _float(value)
    low = -math.inf if feature.low is None else feature.low
    high = math.inf if feature.high is None else feature.high
    of_negatives = feature.transform == "identity"
    if not math.isfinite(number) or not low <= number <= high or (number < 0 and not of_negatives):
        return [feature.fill, 1.0][: feature.num_numbers]
    if feature.transform == "log1p":
        number = math.log1p(number)
    elif feature.transform == "sqrt":
        number = math.sqrt(number)
    scaled = (number - feature.center) * feature.scale
    return [min(max(scaled, -feature.clip), feature.clip), 0.0][: feature.num_numbers]


def _float(value: Value) -> float:
    """Return NaN for what is missing; a float may equal the marker of integers and is none."""
    if value is None or (isinstance(value, int) and value == INT64_MISSING):
        return math.nan
    return float(value)


def _vector(value: list[float | None] | None, feature: Vector) -> list[float]:
    elements = [number for number in value or [] if number is not None and math.isfinite(number)]
    if len(elements) != feature.dim:
        return [*[0.0] * feature.dim, 1.0][: feature.num_numbers]
    length = 1.0
    if feature.normalize == "l2":
        length = max(math.sqrt(sum(number * number for number in elements)), 1e-12)
    return [*(number / length for number in elements), 0.0][: feature.num_numbers]


def _bucket(value: Value, feature: Bucketized) -> int:
    number = _float(value)
    if math.isnan(number) or (math.isinf(number) and not feature.allow_inf):
        return 1
    return 2 + sum(number > float(np.float32(edge)) for edge in feature.edges)


@lru_cache(maxsize=65536)
def murmur3_32(key: bytes) -> int:
    """Return MurmurHash3 x86 32-bit of some bytes with seed 0, unsigned.

    >>> murmur3_32(b""), murmur3_32(b"hello"), murmur3_32(b"42")
    (0, 613153351, 3159925814)
    """
    state, whole = 0, len(key) // 4 * 4
    for start in range(0, whole, 4):
        state ^= _mixed(int.from_bytes(key[start : start + 4], "little"))
        state = (_rotated(state, 13) * 5 + 0xE6546B64) & 0xFFFFFFFF
    if whole < len(key):
        state ^= _mixed(int.from_bytes(key[whole:], "little"))
    state ^= len(key)
    state = (state ^ state >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    state = (state ^ state >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return state ^ state >> 16


def _mixed(block: int) -> int:
    return _rotated(block * 0xCC9E2D51 & 0xFFFFFFFF, 15) * 0x1B873593 & 0xFFFFFFFF


def _rotated(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & 0xFFFFFFFF
