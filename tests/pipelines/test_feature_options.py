"""What a dataset file can say of features, and the path of every fault in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.dataset.checked import Entry, Faults
from pipelines.dataset.feature_roles import BucketizedRole, CrossedRole, NumericRole, read_features
from recsys_moe.errors import SpecError

CROSS = {"kind": "crossed", "name": "c", "columns": ["a", "b"], "num_buckets": 9}
NUMERIC = {"kind": "numeric", "column": "x"}
BUCKETS = {"kind": "bucketized", "column": "x"}
TAGS = {"kind": "categorical", "column": "tags", "max_len": 3}


def read(value: dict[str, Any]) -> tuple[Any, ...]:
    faults = Faults("toy")
    roles = tuple(read_features(Entry(value, "features[0]", faults)))
    faults.raise_any()
    return roles


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (CROSS | {"columns": ["a"]}, ["features[0].columns", "two columns or more"]),
        (CROSS | {"columns": ["a", "b", "a"]}, ["features[0].columns", "each once"]),
        (CROSS | {"columns": None}, ["features[0].columns", "nothing"]),
        (CROSS | {"name": None}, ["features[0].name", "nothing"]),
        (CROSS | {"num_buckets": 2**31 - 17}, ["features[0].num_buckets", "2147483630"]),
        (CROSS | {"column": "a"}, ["features[0].column", "one of kind, name, columns"]),
        (NUMERIC | {"transform": "log"}, ["features[0].transform", "Did you mean 'log1p'?"]),
        (NUMERIC | {"transform": "sqrt", "log1p": True}, ["features[0].transform", "both"]),
        (NUMERIC | {"scale": "max"}, ["features[0].scale", "zscore or minmax or none"]),
        (NUMERIC | {"domain": [0]}, ["features[0].domain", "[low, high]"]),
        (NUMERIC | {"domain": [1, 1]}, ["features[0].domain", "[1, 1]"]),
        (NUMERIC | {"domain": [3, "x"]}, ["features[0].domain", "[3, 'x']"]),
        (NUMERIC | {"domain": [0, 1e39]}, ["features[0].domain", "1e+39"]),
        (NUMERIC | {"domain": [None, -1], "log1p": True}, ["features[0].domain", "at most -1"]),
        (NUMERIC | {"missing": "modian"}, ["features[0].missing", "Did you mean 'median'?"]),
        (NUMERIC | {"missing": True}, ["features[0].missing", "got true"]),
        (NUMERIC | {"missing": -1, "transform": "sqrt"}, ["features[0].missing", "got -1"]),
        (NUMERIC | {"missing": 7, "domain": [None, 6]}, ["features[0].missing", "got 7"]),
        (BUCKETS, ["features[0].edges", "or num_buckets", "nothing"]),
        (BUCKETS | {"edges": [1], "num_buckets": 3}, ["features[0].edges", "both"]),
        (BUCKETS | {"num_buckets": 1}, ["features[0].num_buckets", "from 2 to 1024"]),
        (BUCKETS | {"num_buckets": 1025}, ["features[0].num_buckets", "from 2 to 1024"]),
        (BUCKETS | {"edges": [1], "allow_inf": 1}, ["features[0].allow_inf", "true or false"]),
        (TAGS | {"keep": "newest"}, ["features[0].keep", "first or last"]),
        (TAGS | {"keep": "last", "max_len": None}, ["features[0].keep", "no max_len"]),
    ],
)
def test_each_fault_is_named_by_its_path(value: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SpecError) as error:
        read(value)

    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("columns", "features", "words"),
    [
        (["item", "price"], [], ["features[0].columns", "'price', which holds floats"]),
        (["item", "tags"], [], ["features[0].columns", "'tags', which holds lists"]),
        (["item", "click"], [], ["features[0].columns", "the label of 'click'"]),
        (["item", "itm"], [], ["features[0].columns", "Did you mean 'item'?"]),
        (
            ["item", "user"],
            [{"kind": "hashed", "column": "item", "table": "c", "num_buckets": 9}],
            ["features[1].table", "the settings of 'c'"],
        ),
    ],
)
def test_a_cross_takes_single_strings_and_integers(
    columns: list[str],
    features: list[dict[str, Any]],
    words: list[str],
    dataset_of: Callable[..., Any],
    build_features: Callable[..., Path],
    frame: Callable[..., pl.DataFrame],
) -> None:
    rows = frame(60, 1, tags=pl.concat_list("item", "item"))
    value = dataset_of([CROSS | {"columns": columns}, *features])

    with pytest.raises(SpecError) as error:
        build_features(value, {"train": rows, "test": rows})

    for word in words:
        assert word in str(error.value)


def test_a_number_may_say_no_more_than_its_column() -> None:
    (role,) = read(NUMERIC)

    assert role == NumericRole(
        path="features[0]",
        name="x",
        column="x",
        transform="identity",
        scaling="zscore",
        low=None,
        high=None,
        missing="zero",
        clip=8.0,
        missing_flag=False,
    )


def test_log1p_is_short_for_the_transform() -> None:
    assert read(NUMERIC | {"log1p": True}) == read(NUMERIC | {"transform": "log1p"})
    assert read(NUMERIC | {"log1p": False}) == read(NUMERIC)


def test_bounds_and_stand_ins_are_numbers_as_the_data_has_them() -> None:
    (role,) = read(NUMERIC | {"domain": [0.1, 0.7], "missing": 0.1})

    assert (role.low, role.high) == (float(np.float32(0.1)), float(np.float32(0.7)))
    assert role.missing == role.low


def test_what_is_not_scaled_is_not_clipped_unless_asked() -> None:
    (free,), (cut,) = (
        read(NUMERIC | {"scale": "none"}),
        read(NUMERIC | {"scale": "none", "clip": 3}),
    )

    assert free.clip == float(np.finfo(np.float32).max)
    assert cut.clip == 3


def test_a_cross_reads_all_its_columns_as_one_feature() -> None:
    (role,) = read(CROSS | {"columns": ["a", "b", "c"]})

    assert isinstance(role, CrossedRole)
    assert role.columns == ("a", "b", "c")
    assert role.table == "c"


def test_several_columns_may_have_fitted_buckets() -> None:
    roles = read({"kind": "bucketized", "columns": ["a", "b"], "num_buckets": 5})

    assert [(r.name, r.num_buckets, r.edges) for r in roles if isinstance(r, BucketizedRole)] == [
        ("a", 5, ()),
        ("b", 5, ()),
    ]
