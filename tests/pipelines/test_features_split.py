"""Laws of rows and splits: each row once, in order, and nothing of the future in what is fitted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys_moe.spec import FeatureSpec

Build = Callable[..., Path]
Frame = Callable[..., pl.DataFrame]
FEATURES = [
    {"kind": "categorical", "columns": ["item", "place"], "num_oov": 2},
    {"kind": "numeric", "name": "price_scaled", "column": "price", "missing_flag": True},
    {"kind": "bucketized", "name": "price_bin", "column": "price", "edges": [1, 2]},
]
FITTED = ("feature_spec.json", "vocab", "prepared/train", "tensors/train")


def prepared(out: Path, split: str) -> pl.DataFrame:
    return pl.read_parquet(out / "prepared" / split)


def one_file(dataset_of: Any, split: dict[str, Any], **more: Any) -> Any:
    source = {"format": "parquet", "path": "train.parquet"}
    return dataset_of(FEATURES, source=source, split=split, **more)


def test_every_row_comes_once_and_in_order(
    build_features: Build, dataset_of: Any, frame: Frame
) -> None:
    train, test = frame(500, 1), frame(200, 2)

    out = build_features(dataset_of(FEATURES), {"train": train, "test": test})

    ids = {split: prepared(out, split)["row_id"] for split in ("train", "valid", "test")}
    assert all(series.is_sorted() for series in ids.values())
    assert sorted([*ids["train"], *ids["valid"]]) == list(range(500))
    assert ids["test"].to_list() == list(range(500, 700))
    both = pl.concat([train, test])
    for split, series in ids.items():
        assert prepared(out, split)["item"].to_list() == both["item"].gather(series).to_list()
    assert 0.15 < len(ids["valid"]) / 500 < 0.45


def test_the_future_cannot_leak(
    build_features: Build,
    dataset_of: Any,
    contents: Callable[[Path], dict[str, bytes]],
    frame: Frame,
) -> None:
    train, test = frame(600, 1), frame(200, 2)
    first = build_features(dataset_of(FEATURES, user="user"), {"train": train, "test": test})
    is_valid = pl.Series(range(600)).is_in(prepared(first, "valid")["row_id"].to_list())
    other = frame(600, 3, item=pl.lit("other"), price=pl.lit(1e9), click=1 - pl.col("click"))
    changed = pl.DataFrame(
        {
            name: pl.select(pl.when(is_valid).then(other[name]).otherwise(train[name])).to_series()
            for name in train.columns
        }
    )

    second = build_features(
        dataset_of(FEATURES, user="user"), {"train": changed, "test": other.head(150)}
    )

    for path in FITTED:
        mine = {path: (first / path).read_bytes()} if "." in path else contents(first / path)
        theirs = {path: (second / path).read_bytes()} if "." in path else contents(second / path)
        assert mine == theirs
    assert not prepared(first, "valid").equals(prepared(second, "valid"))


@pytest.mark.parametrize("by", ["hash", "time", "column"])
def test_a_split_is_what_its_rule_says(
    build_features: Build, dataset_of: Any, by: str, frame: Frame
) -> None:
    rows = frame(2000, 4)
    rules: dict[str, dict[str, Any]] = {
        "hash": {"by": "hash", "column": "user", "valid_share": 0.2, "test_share": 0.2, "seed": 3},
        "time": {"by": "time", "column": "at", "valid_share": 0.2, "test_share": 0.1},
        "column": {"by": "column", "column": "fold", "train": "a", "valid": ["b"], "test": ["c"]},
    }

    out = build_features(one_file(dataset_of, rules[by]), {"train": rows})

    of = {s: rows[prepared(out, s)["row_id"].to_list()] for s in ("train", "valid", "test")}
    assert sum(len(part) for part in of.values()) == 2000
    if by == "hash":
        users = [set(part["user"]) for part in of.values()]
        assert len(users[0] | users[1] | users[2]) == sum(map(len, users))
    if by == "time":
        assert of["train"]["at"].max() < of["valid"]["at"].min()
        assert of["valid"]["at"].max() < of["test"]["at"].min()
        assert len(of["test"]) == pytest.approx(200, abs=3)
        assert len(of["valid"]) == pytest.approx(400, abs=3)
        window = FeatureSpec.load(out / "feature_spec.json").train_window
        ends = of["train"]["at"].min(), of["train"]["at"].max()
        assert window == tuple(int(end.timestamp() * 1e6) for end in ends)
    if by == "column":
        assert [set(part["fold"]) for part in of.values()] == [{"a"}, {"b"}, {"c"}]


def test_a_seed_and_nothing_else_draws_the_validation(
    build_features: Build, dataset_of: Any, frame: Frame
) -> None:
    frames = {"train": frame(400, 1), "test": frame(50, 2)}
    draws = []
    for seed, rows in ((1, frames), (1, {**frames, "train": frame(400, 9)}), (2, frames)):
        split = {"by": "file", "valid_share": 0.3, "seed": seed}
        out = build_features(dataset_of(FEATURES, split=split), rows)
        draws.append(prepared(out, "valid")["row_id"].to_list())
    assert draws[0] == draws[1] != draws[2]
