"""Codes and numbers equal those of a plain Python encoder, for every kind of value."""

import math
import random
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.encoding import encode
from recsys_moe.spec import Bucketized, Categorical, Column, Crossed, FeatureSpec, Numeric, Task

INT64_MIN = -(2**63)
WORDS = ["a", "b", "B", "é", "e\u0301", "日本", "nul\0", "nul", "x" * 300, " ", "?", "", None]
FEATURES = [
    {"kind": "categorical", "columns": ["word", "user.id"]},
    {"kind": "categorical", "name": "rare", "column": "word", "min_frequency": 3, "num_oov": 5},
    {"kind": "categorical", "name": "top", "column": "Number", "max_size": 4, "num_oov": 3},
    {"kind": "categorical", "columns": ["flag"]},
    {"kind": "hashed", "name": "bucket", "column": "word", "num_buckets": 11},
    {"kind": "hashed", "name": "number_bucket", "column": "Number", "num_buckets": 7},
    {"kind": "categorical", "name": "tag", "column": "main_tag", "table": "tag"},
    {"kind": "categorical", "name": "tags", "column": "tags", "max_len": 3, "table": "tag"},
    {"kind": "hashed", "name": "ids_hashed", "column": "ids", "max_len": 2, "num_buckets": 5},
    {"kind": "categorical", "columns": ["ids"], "max_len": 4, "num_oov": 2},
    {"kind": "bucketized", "name": "price_bin", "column": "price", "edges": [-1, 0.1, 2.5, 1e30]},
    {"kind": "bucketized", "name": "number_bin", "column": "Number", "edges": [-3, 0, 3]},
    {"kind": "numeric", "name": "price_scaled", "column": "price", "missing_flag": True, "clip": 1},
    {"kind": "numeric", "name": "price_log", "column": "price", "log1p": True},
    {"kind": "numeric", "name": "number_scaled", "column": "Number", "missing_flag": True},
    {"kind": "numeric", "name": "same_scaled", "column": "same"},
    {"kind": "crossed", "name": "word_number", "columns": ["word", "Number"], "num_buckets": 13},
    {"kind": "crossed", "name": "both", "columns": ["flag", "user.id", "word"], "num_buckets": 999},
    {"kind": "categorical", "name": "tags_last", "column": "tags", "max_len": 2, "keep": "last",
     "table": "tag"},
    {"kind": "hashed", "name": "ids_last", "column": "ids", "max_len": 3, "keep": "last",
     "num_buckets": 5},
    {"kind": "bucketized", "name": "price_parts", "column": "price", "num_buckets": 4,
     "allow_inf": True},
    {"kind": "numeric", "name": "number_root", "column": "Number", "transform": "sqrt",
     "domain": [-2, 3], "scale": "minmax", "missing": "median", "missing_flag": True},
    {"kind": "numeric", "name": "price_cut", "column": "price", "domain": [0, 10],
     "scale": "none", "missing": "mean"},
]  # fmt: skip
ASKED = {feature.get("name"): feature for feature in FEATURES}
TRANSFORMS = {"identity": float, "log1p": math.log1p, "sqrt": math.sqrt}


def murmur3_x86_32(data: bytes) -> int:
    """MurmurHash3 x86 32-bit with seed 0, straight from its definition."""
    mask, h = 0xFFFFFFFF, 0
    for start in range(0, len(data), 4):
        k = int.from_bytes(data[start : start + 4], "little")
        k = k * 0xCC9E2D51 & mask
        k = ((k << 15) | (k >> 17)) & mask
        h ^= k * 0x1B873593 & mask
        if len(data) - start >= 4:
            h = ((h << 13) | (h >> 19)) & mask
            h = (h * 5 + 0xE6546B64) & mask
    h ^= len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h = ((h ^ (h >> shift)) * factor) & mask
    return h


def fuzzed(rows: int, seed: int, unseen: bool) -> pl.DataFrame:
    draw = random.Random(seed)
    words = [*WORDS, "unseen", "ungesehen ü", "late\0"] if unseen else WORDS
    numbers = [*range(-4, 5), 10**18, INT64_MIN, None, *([77, -99] if unseen else [])]
    prices = [0.1, 2.5, -1.0, -0.5, 0.0, 1e30, 1e300, math.nan, math.inf, -math.inf, None, 7.25]
    lists = [None, [], [None], ["", "a"], ["b", None, "é", "nul\0", "a"], [draw.choice(words)]]
    ids = [None, [], [1, None, INT64_MIN, 2, 3], [5], [draw.randrange(9) for _ in range(6)]]

    def column(values: list[Any]) -> list[Any]:
        return [draw.choice(values) for _ in range(rows)]

    return pl.DataFrame(
        {
            "word": column(words),
            "user.id": pl.Series(column([3, 1, 2, None, 200]), dtype=pl.UInt8),
            "Number": pl.Series(column(numbers), dtype=pl.Int64),
            "flag": column([True, False, None]),
            "main_tag": column(words),
            "tags": pl.Series(column(lists), dtype=pl.List(pl.String)),
            "ids": pl.Series(column(ids), dtype=pl.List(pl.Int64)),
            "price": pl.Series(column(prices), dtype=pl.Float64),
            "same": [0.1] * rows,
            "click": column([0, 1]),
        }
    )


def plain(value: Any) -> Any:
    """A value as the contract reads it: missing is None, numbers are int or float32."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        with np.errstate(over="ignore"):
            value = float(np.float32(value))
        return value if math.isfinite(value) else None
    return None if value in ("", INT64_MIN) else value


class Oracle:
    """Fit on train rows and encode one row at a time, with dictionaries and loops."""

    def __init__(self, spec: FeatureSpec, train: list[dict[str, Any]]) -> None:
        self.spec, self.codes, self.scales = spec, {}, {}
        for table in spec.tables:
            sharing = [f for f in spec.code_features if f.table == table.name]
            if table.vocabulary is None:
                continue
            counts: Counter[Any] = Counter()
            for column in {name for f in sharing for name in f.columns}:
                for row in train:
                    cell = row[column]
                    cells = (cell or []) if spec.column(column).is_list else [cell]
                    counts.update(v for v in map(plain, cells) if v is not None)
            options = ASKED.get(sharing[0].name, {})
            kept = [v for v in counts if counts[v] >= options.get("min_frequency", 1)]
            kept.sort(key=lambda v: (-counts[v], v.encode() if isinstance(v, str) else v))
            kept = kept[: options.get("max_size")]
            self.codes[table.name] = {v: 2 + table.num_oov + i for i, v in enumerate(kept)}
            assert table.num_codes == 2 + table.num_oov + len(kept)
        for feature in spec.numeric_features:
            values = [v for v in (self.number(feature, row) for row in train) if v is not None]
            options = ASKED[feature.name]
            mean, center, scale = math.fsum(values) / len(values), 0.0, 1.0
            if options.get("scale") == "minmax":
                center, scale = min(values), 1 / (max(values) - min(values))
            elif options.get("scale") is None:
                deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
                center, scale = mean, 1 / deviation if deviation > 1e-12 else 0.0
            stand_ins = {"zero": center, "mean": mean, "median": statistics.median(values)}
            self.scales[feature.name] = center, scale, stand_ins[options.get("missing", "zero")]
        for feature in spec.code_features:
            if isinstance(feature, Bucketized) and "num_buckets" in ASKED[feature.name]:
                numbers = [plain(row[feature.column]) for row in train]
                numbers = sorted(number for number in numbers if number is not None)
                parts = ASKED[feature.name]["num_buckets"]
                last = [math.ceil(i * len(numbers) / parts) - 1 for i in range(1, parts)]
                edges = sorted({numbers[i] for i in last} - {numbers[-1]})
                assert list(feature.edges) == edges

    def number(self, feature: Numeric, row: dict[str, Any]) -> float | None:
        value, options = plain(row[feature.column]), ASKED[feature.name]
        transform = options.get("transform", "log1p" if options.get("log1p") else "identity")
        low, high = options.get("domain", (-math.inf, math.inf))
        if value is None or not low <= value <= high or (value < 0 and transform != "identity"):
            return None
        return TRANSFORMS[transform](value)

    def cross(self, feature: Crossed, row: dict[str, Any]) -> int:
        parts = [plain(row[column]) for column in feature.columns]
        if parts == [None] * len(parts):
            return 1
        texts = ["\0null" if part is None else str(part) for part in parts]
        buckets = ASKED[feature.name]["num_buckets"]
        return 2 + murmur3_x86_32("\x1f".join(texts).encode()) % buckets

    def code(self, feature: Categorical, value: Any) -> int:
        value, table = plain(value), self.spec.table(feature.table)
        if value is None:
            return 1
        listed = self.codes.get(table.name, {})
        return listed.get(value, 2 + murmur3_x86_32(str(value).encode()) % table.num_oov)

    def slots(self, row: dict[str, Any]) -> list[int]:
        slots: list[int] = []
        for feature in self.spec.code_features:
            if isinstance(feature, Crossed):
                slots.append(self.cross(feature, row))
                continue
            cell = row[feature.column]
            if isinstance(feature, Bucketized):
                value = plain(cell)
                if feature.allow_inf and value is None and cell is not None:
                    value = None if math.isnan(cell) else math.copysign(math.inf, cell)
                slots.append(
                    1 if value is None else 2 + sum(value > edge for edge in feature.edges)
                )
            elif feature.max_len is None:
                slots.append(self.code(feature, cell))
            else:
                cells = list(cell or [])
                while len(cells) > feature.max_len:
                    cells.pop(0 if feature.keep == "last" else -1)
                codes = [self.code(feature, value) for value in cells]
                slots += codes + [0] * (feature.max_len - len(codes))
        return slots

    def numbers(self, row: dict[str, Any]) -> list[float]:
        numbers = []
        for feature in self.spec.numeric_features:
            value, (center, scale, stand_in) = self.number(feature, row), self.scales[feature.name]
            scaled = ((stand_in if value is None else value) - center) * scale
            numbers.append(max(-feature.clip, min(feature.clip, scaled)))
            if feature.missing_flag:
                numbers.append(float(value is None))
        return numbers


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_tensors_are_those_of_a_plain_python_encoder(
    seed: int, build_features: Callable[..., Path], dataset_of: Callable[..., Any]
) -> None:
    train, test = fuzzed(700, seed, False), fuzzed(400, seed + 100, True)
    out = build_features(dataset_of(FEATURES, user="word"), {"train": train, "test": test})
    spec = FeatureSpec.load(out / "feature_spec.json")
    rows = pl.concat([train, test]).to_dicts()

    def split_rows(split: str) -> list[dict[str, Any]]:
        prepared = pl.read_parquet(out / "prepared" / split)
        assert prepared["row_id"].is_sorted()
        return [rows[i] for i in prepared["row_id"]]

    oracle = Oracle(spec, split_rows("train"))
    assert len(split_rows("train")) + len(split_rows("valid")) == 700
    for split in ("train", "valid", "test"):
        folder, mine = out / "tensors" / split, split_rows(split)
        codes, numbers = np.load(folder / "codes.npy"), np.load(folder / "numbers.npy")
        assert codes.dtype == np.int32
        assert numbers.dtype == np.float32
        np.testing.assert_array_equal(codes, [oracle.slots(row) for row in mine])
        wanted = np.array([oracle.numbers(row) for row in mine])
        np.testing.assert_allclose(numbers, wanted, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(
            np.load(folder / "labels.npy")[:, 0], [row["click"] for row in mine]
        )
        users = np.load(folder / "users.npy")
        ids: dict[Any, int] = {}
        for user, row in zip(users.tolist(), mine, strict=True):
            name = plain(row["word"])
            assert (user == -1) == (name is None)
            assert name is None or ids.setdefault(name, user) == user
        assert len(set(ids.values())) == len(ids)


def test_a_number_that_is_not_finite_is_never_written() -> None:
    feature = Numeric(
        name="x",
        column="x",
        transform="identity",
        center=0.0,
        scale=1.0,
        clip=math.inf,
        missing_flag=True,
    )
    spec = FeatureSpec(
        dataset="toy",
        columns=(Column(name="x", type="float32"),),
        tables=(),
        features=(feature,),
        tasks=(Task(name="click", label="click"),),
        train_rows=1,
    )
    assert encode.numbers(pl.DataFrame({"x": [1.0, None]}), spec).tolist() == [[1, 0], [0, 1]]

    with pytest.raises(RuntimeError, match="feature 'x': 2 numbers that are not finite"):
        encode.numbers(pl.DataFrame({"x": [1e300, 2.0, -1e300]}), spec)
