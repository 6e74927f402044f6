"""Features built on a new window from old ones: every code and scale that was known stays."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.build import build
from recsys_moe.errors import RequestError

Build = Callable[..., Path]
Frame = Callable[..., pl.DataFrame]
FEATURES = [
    {"kind": "categorical", "name": "item", "column": "item", "num_oov": 2, "min_frequency": 3},
    {"kind": "categorical", "name": "place", "column": "place"},
    {"kind": "hashed", "name": "user", "column": "user", "num_buckets": 11},
    {"kind": "numeric", "name": "price", "column": "price", "missing": "mean"},
    {"kind": "bucketized", "name": "price_bin", "column": "price", "num_buckets": 5},
]


def window(frame: Frame, rows: int, seed: int, *, new: bool = False) -> pl.DataFrame:
    """Draw rows; those of a new window have other prices, no item i1 and some of a new kind."""
    drawn = frame(rows, seed)
    if not new:
        return drawn
    item = pl.col("item").replace({"i1": "n1", "i3": "n2"})
    return drawn.with_columns(item=item, price=pl.col("price") * 5 + 2)


def values(out: Path, table: str) -> dict[Any, tuple[int, int]]:
    rows = pl.read_parquet(out / "vocab" / f"{table}.parquet")["value", "code", "count"].rows()
    return {value: (code, count) for value, code, count in rows}


def test_growing_on_the_same_window_changes_nothing(
    build_features: Build,
    dataset_of: Any,
    contents: Callable[[Path], dict[str, bytes]],
    frame: Frame,
) -> None:
    frames = {"train": window(frame, 900, 1), "test": window(frame, 99, 2)}
    old = build_features(dataset_of(FEATURES), frames)

    new = build_features(dataset_of(FEATURES), frames, grow_from=old)

    for part in ("vocab", "tensors", "prepared"):
        assert contents(new / part) == contents(old / part)
    assert (new / "feature_spec.json").read_bytes() == (old / "feature_spec.json").read_bytes()
    growth = json.loads((new / "report.json").read_text())["growth"]
    for counts in growth["tables"].values():
        assert (counts["new"], counts["unused"]) == (0, 0)
        assert counts["kept"] == counts["size_before"] == counts["size_after"] > 0


def test_old_values_keep_their_codes_and_numbers_on_a_new_window(
    build_features: Build, dataset_of: Any, frame: Frame
) -> None:
    test = window(frame, 99, 2)
    old = build_features(dataset_of(FEATURES), {"train": window(frame, 900, 1), "test": test})
    train = window(frame, 900, 3, new=True)
    more = {"kind": "numeric", "name": "more", "column": "price", "log1p": True}
    given = dataset_of([*FEATURES, more]), {"train": train, "test": test}

    new, fresh = build_features(*given, grow_from=old), build_features(*given)

    before, after = values(old, "item"), values(new, "item")
    prepared = pl.read_parquet(new / "prepared" / "train")
    counts = dict(prepared["item"].value_counts().rows())
    assert after == {value: (code, counts.get(value, 0)) for value, (code, _) in after.items()}
    assert {value: after[value][0] for value in before} == {v: c for v, (c, _) in before.items()}
    assert after["i1"][1] == 0
    assert after.keys() - before.keys() >= {"n1"}
    assert [code for code, _ in after.values()] == list(range(4, 4 + len(after)))

    def tensors(out: Path, kind: str) -> np.ndarray:
        return np.load(out / "tensors" / "test" / f"{kind}.npy")

    listed = pl.Series(test["item"]).is_in(list(before)).to_numpy()
    assert listed.any()
    assert np.array_equal(tensors(new, "codes")[listed], tensors(old, "codes")[listed])
    assert np.array_equal(tensors(new, "numbers")[:, 0], tensors(old, "numbers")[:, 0])
    assert not np.array_equal(tensors(fresh, "codes")[listed], tensors(old, "codes")[listed])
    assert not np.array_equal(tensors(fresh, "numbers")[:, 0], tensors(old, "numbers")[:, 0])
    assert np.array_equal(tensors(new, "numbers")[:, 1], tensors(fresh, "numbers")[:, 1])
    report = json.loads((new / "report.json").read_text())["growth"]
    unused = sum(count == 0 for _, count in after.values())
    assert report["features_added"] == ["more"]
    assert report["tables"]["item"] == {
        "kept": len(before) - unused,
        "unused": unused,
        "new": len(after) - len(before),
        "size_before": len(before),
        "size_after": len(after),
    }


def test_old_features_grow_once_and_their_digest_is_part_of_the_request(
    build_features: Build, dataset_of: Any, frame: Frame
) -> None:
    frames = {"train": window(frame, 900, 1), "test": window(frame, 99, 2)}
    old = build_features(dataset_of(FEATURES), frames)
    other = build_features(dataset_of(FEATURES), {**frames, "train": window(frame, 900, 4)})
    new = build_features(dataset_of(FEATURES), frames, grow_from=old)
    written = (new / "report.json").stat().st_mtime_ns
    again: dict[str, Any] = {"folder": new.parent, "output": new}

    build(dataset_of(FEATURES), **again, grow_from=old)
    assert (new / "report.json").stat().st_mtime_ns == written
    for another in (other, None):
        with pytest.raises(RequestError, match="started with another grow_from"):
            build(dataset_of(FEATURES), **again, grow_from=another)


def test_a_contradiction_leaves_nothing(
    build_features: Build, dataset_of: Any, frame: Frame, tmp_path: Path
) -> None:
    frames = {"train": window(frame, 900, 1), "test": window(frame, 99, 2)}
    old = build_features(dataset_of(FEATURES), frames)
    changed = [{**FEATURES[0], "num_oov": 3}, *FEATURES[1:]]

    with pytest.raises(RequestError, match=r"table 'item', num_oov: wanted 2, .* got 3"):
        build_features(dataset_of(changed), frames, grow_from=old)

    assert not (tmp_path / "set1" / "out").exists()
