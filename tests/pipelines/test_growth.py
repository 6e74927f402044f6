"""Growing vocabularies and specs: what is old stays put, and what contradicts it is refused."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.dataset.checked import Faults
from pipelines.dataset.dataset import read_dataset
from pipelines.fitting.growth import Growth, check_growth, grow_spec, grow_vocabulary, growth_report
from pipelines.fitting.growth import read_growth as read
from recsys_moe.errors import RequestError
from recsys_moe.spec import (
    Bucketized,
    Categorical,
    Column,
    FeatureSpec,
    Numeric,
    Table,
    Task,
)

FILE: dict[str, Any] = {
    "name": "shop",
    "source": {"format": "parquet", "train": "a.parquet", "test": "b.parquet"},
    "split": {"by": "file", "valid_share": 0.1, "seed": 1},
    "tasks": [
        {"name": "click", "label": "click"},
        {"name": "stay", "label": "stay", "kind": "regression", "transform": "log1p"},
    ],
    "features": [
        {"kind": "categorical", "name": "item", "column": "item", "num_oov": 2},
        {"kind": "hashed", "name": "tags", "column": "tags", "num_buckets": 9, "max_len": 3},
        {"kind": "bucketized", "name": "bin", "column": "price", "edges": [0, 1]},
        {"kind": "numeric", "name": "price", "column": "price", "log1p": True},
    ],
}
OLD = FeatureSpec(
    dataset="shop",
    columns=(
        Column(name="item", type="string"),
        Column(name="tags", type="int64", is_list=True),
        Column(name="price", type="float32"),
    ),
    tables=(
        Table(name="item", num_codes=7, num_oov=2, vocabulary="vocab/item.parquet"),
        Table(name="tags", num_codes=11, num_oov=9),
        Table(name="bin", num_codes=5, num_oov=0),
    ),
    features=(
        Categorical(name="item", column="item", table="item"),
        Categorical(name="tags", column="tags", table="tags", max_len=3),
        Bucketized(name="bin", column="price", table="bin", edges=(0.0, 1.0)),
        Numeric(
            name="price",
            column="price",
            transform="log1p",
            center=0.25,
            scale=2.0,
            clip=8.0,
            missing_flag=False,
            fill=0.5,
        ),
    ),
    tasks=(
        Task(name="click", label="click"),
        Task(name="stay", label="stay", kind="regression", transform="log1p", mean=3.0, scale=0.5),
    ),
    train_rows=10,
)
COLUMNS = {column.name: column for column in OLD.columns}


def check(old: FeatureSpec = OLD, **changes: Any) -> None:
    """Hold the file against a spec; a change is of one entry, `item={"num_oov": 3}`."""
    entries = []
    for entry in [*FILE["features"], *FILE["tasks"]]:
        changed = {**entry, **changes.get(entry["name"], {})}
        entries.append({key: value for key, value in changed.items() if value is not None})
    faults = Faults("dataset")
    value = {**FILE, "features": entries[:4], "tasks": entries[4:]}
    dataset = read_dataset(value, faults)
    faults.raise_any()
    check_growth(dataset, {**COLUMNS, **changes.get("columns", {})}, old)


@pytest.mark.parametrize(
    ("size", "max_size", "first_code"), [(0, None, 3), (40, None, 4), (40, 45, 3), (40, 30, 3)]
)
@pytest.mark.parametrize("kind", [int, str])
def test_old_values_keep_their_codes_and_frequent_new_ones_follow(
    size: int, max_size: int | None, first_code: int, kind: type
) -> None:
    rng = np.random.default_rng(size)
    drawn = [kind(x) for x in rng.zipf(1.3, 900) % 80]
    old = [kind(x) for x in rng.permutation(100)[:size]]
    dtype = pl.Int64 if kind is int else pl.String
    counts = pl.LazyFrame({"value": pl.Series(drawn, dtype=dtype)}).group_by("value")

    found = grow_vocabulary(
        counts.agg(count=pl.len().cast(pl.Int64)),
        pl.Series("value", old, dtype=dtype),
        min_frequency=3,
        max_size=max_size,
        first_code=first_code,
    )

    tally = Counter(drawn)
    new = [x for x in tally if x not in old and tally[x] >= 3]
    new.sort(key=lambda x: (-tally[x], x))
    new = new if max_size is None else new[: max(0, max_size - size)]
    rows = [(x, tally[x], first_code + place) for place, x in enumerate([*old, *new])]
    assert found.rows() == rows
    assert found.dtypes == [dtype, pl.Int64, pl.Int64]


def test_what_was_fitted_stays_and_what_is_new_is_fitted_anew() -> None:
    number = OLD.features[3]
    fresh = replace(
        OLD,
        features=(
            replace(number, name="new", center=9.0),
            *OLD.features[:2],
            replace(OLD.features[2], edges=(7.0,)),
            replace(number, center=9.0, scale=9.0, fill=9.0),
        ),
        tables=(
            replace(OLD.tables[0], num_codes=9),
            OLD.tables[1],
            replace(OLD.tables[2], num_codes=4),
        ),
        tasks=(OLD.tasks[0], replace(OLD.tasks[1], mean=1.0, scale=1.0, weight=2.0)),
    )

    grown = grow_spec(fresh, OLD)

    assert grown.features == (fresh.features[0], *OLD.features)
    assert grown.tables == (fresh.tables[0], *OLD.tables[1:])
    assert grown.tasks == (OLD.tasks[0], replace(OLD.tasks[1], weight=2.0))
    assert grow_spec(OLD, OLD) == OLD


def test_the_file_of_the_old_spec_does_not_contradict_it() -> None:
    check()
    check(item={"min_frequency": 5, "max_size": 3}, stay={"weight": 2.0})
    check(bin={"edges": None, "num_buckets": 10})  # quantiles: those of the old window stay
    check(price={"missing": "mean", "scale": "minmax"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"item": {"num_oov": 3}}, "table 'item', num_oov: wanted 2, as .*, got 3"),
        ({"item": {"table": "thing"}}, "feature 'item', table: wanted 'item', .* got 'thing'"),
        ({"tags": {"num_buckets": 10}}, "table 'tags', num_buckets: wanted 9, .* got 10"),
        ({"tags": {"max_len": 4}}, "feature 'tags', max_len: wanted 3, .* got 4"),
        (
            {"tags": {"kind": "categorical", "num_buckets": None}},
            "table 'tags', kind: wanted 'hashed', .* got 'categorical'",
        ),
        ({"bin": {"edges": [0, 2]}}, r"feature 'bin', edges: wanted \(0.0, 1.0\), .*\(0.0, 2.0\)"),
        (
            {"bin": {"kind": "numeric", "edges": None}},
            "feature 'bin', kind: wanted 'bucketized', .* got 'numeric'",
        ),
        ({"price": {"log1p": False}}, "feature 'price', transform: wanted 'log1p', .*'identity'"),
        ({"price": {"clip": 3}}, "feature 'price', clip: wanted 8.0, .* got 3.0"),
        ({"price": {"missing_flag": True}}, "feature 'price', missing_flag: wanted False"),
        (
            {"columns": {"item": Column(name="item", type="int64")}},
            "column 'item', type: wanted 'string', .* got 'int64'",
        ),
        (
            {"stay": {"transform": "identity"}},
            "task 'stay', transform: wanted 'log1p', .* got 'identity'",
        ),
    ],
)
def test_another_meaning_is_refused_with_both(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        check(**changes)


def test_the_report_closes(tmp_path: Path) -> None:
    new = replace(
        OLD,
        tables=(replace(OLD.tables[0], num_codes=8), OLD.tables[1]),
        features=(*OLD.features[:2], replace(OLD.features[3], name="cost")),
    )
    old = Growth(OLD, {"item": pl.Series(["a", "b", "c"])})
    (tmp_path / "new" / "vocab").mkdir(parents=True)
    frame = pl.DataFrame({"value": ["a", "b", "c", "d"], "count": [0, 9, 0, 8]})
    frame.write_parquet(tmp_path / "new" / "vocab" / "item.parquet")

    report = growth_report(old, new, tmp_path / "new")

    assert report == {
        "old_spec": OLD.digest,
        "tables": {
            "item": {"kept": 1, "unused": 2, "new": 1, "size_before": 3, "size_after": 4},
        },
        "tables_added": [],
        "tables_removed": ["bin"],
        "features_added": ["cost"],
        "features_removed": ["bin", "price"],
    }


def test_only_finished_features_grow(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="wanted a finished features folder, got none"):
        read(tmp_path)
    (tmp_path / "request.json").write_text("{}")
    with pytest.raises(RequestError, match="wanted a finished features folder, got an unfinished"):
        read(tmp_path)
