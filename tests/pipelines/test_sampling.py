"""Thinned-out negatives: which rows are kept follows from their key, and what they then weigh."""

import re
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.dataset.checked import Faults
from pipelines.dataset.dataset import read_dataset
from pipelines.dataset.roles import Sampling
from pipelines.dataset.rules import check_dataset
from pipelines.rows.sampling import kept, sampling_weight

SAMPLING = Sampling(task="click", keep_rate=0.25, correct="shift", seed=11)
MASK = 0xFFFFFFFF


def murmur3_x86_32(data: bytes) -> int:
    """MurmurHash3 x86 32-bit with seed 0, straight from its definition."""
    h = 0
    for start in range(0, len(data), 4):
        k = int.from_bytes(data[start : start + 4], "little") * 0xCC9E2D51 & MASK
        h ^= ((k << 15) | (k >> 17)) * 0x1B873593 & MASK
        if len(data) - start >= 4:
            h = (((h << 13) | (h >> 19)) * 5 + 0xE6546B64) & MASK
    h ^= len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h = ((h ^ (h >> shift)) * factor) & MASK
    return h


def rows(number: int) -> pl.DataFrame:
    draw = np.random.default_rng(2)
    return pl.DataFrame(
        {
            "user": [f"u{n}é" for n in draw.integers(0, 10**6, number)],
            "request": pl.int_range(number, eager=True),
            "click": [None if x < 0.1 else int(x > 0.9) for x in draw.random(number)],
        }
    )


@pytest.mark.parametrize("keys", [["request"], ["user", "request"]])
def test_a_negative_is_kept_by_the_hash_of_its_key(keys: list[str]) -> None:
    frame = rows(2000)

    found = frame.select(kept(SAMPLING, pl.col("click"), keys)).to_series().to_list()

    expected = []
    for row in frame.iter_rows(named=True):
        key = "\x1f".join(str(row[key]) for key in keys)
        drawn = murmur3_x86_32(f"11|{key}".encode()) < 2**30
        expected.append(drawn or row["click"] != 0)
    assert found == expected
    assert any(expected)


def test_the_share_of_negatives_kept_is_the_rate_and_all_others_stay() -> None:
    frame = rows(200_000)

    thin = frame.filter(kept(SAMPLING, pl.col("click"), ["request"]))

    negatives = frame.filter(pl.col("click") == 0).height
    assert thin.filter(pl.col("click") == 0).height / negatives == pytest.approx(0.25, abs=0.005)
    for others in (pl.col("click") == 1, pl.col("click").is_null()):
        assert thin.filter(others).equals(frame.filter(others))


def test_the_rows_kept_do_not_depend_on_their_place() -> None:
    frame = rows(3000)
    mixed = frame.sample(fraction=1, shuffle=True, seed=1)
    choice = kept(SAMPLING, pl.col("click"), ["user", "request"])

    assert mixed.filter(choice).sort("request").equals(frame.filter(choice).sort("request"))


def test_another_seed_keeps_other_rows_and_rate_one_keeps_all() -> None:
    frame = rows(3000)

    def keep(**more: Any) -> pl.DataFrame:
        values = {"task": "click", "keep_rate": 0.25, "correct": "shift", "seed": 11, **more}
        return frame.filter(kept(Sampling(**values), pl.col("click"), ["request"]))

    assert not keep().equals(keep(seed=12))
    assert keep(keep_rate=1.0).equals(frame)


def test_weights_add_up_to_the_rows_that_were_there() -> None:
    frame = rows(200_000)
    weighted = Sampling(task="click", keep_rate=0.25, correct="weight", seed=11)

    thin = frame.filter(kept(weighted, pl.col("click"), ["request"]))

    def total(sampling: Sampling) -> float:
        return float(thin.select(sampling_weight(sampling, pl.col("click")).sum()).item())

    assert total(weighted) == pytest.approx(frame.height, rel=0.01)
    assert total(SAMPLING) == thin.height


SHIFT = {"negatives_of": "click", "keep_rate": 0.1}
CLICK = {"name": "click", "label": "click"}
SALE = {"name": "sale", "label": "sale", "space": "click"}
LIKE = {"name": "like", "label": "like"}
WATCH = {"name": "watch", "label": "watch", "kind": "regression"}
LOGS = {
    "format": "parquet",
    "impressions": "i.parquet",
    "clicks": "c.parquet",
}


@pytest.mark.parametrize(
    ("more", "path", "words"),
    [
        (
            {"tasks": [CLICK, LIKE], "sampling": SHIFT},
            "sampling.correct",
            "correct: weight.*'like'",
        ),
        ({"tasks": [CLICK, WATCH], "sampling": SHIFT}, "sampling.correct", "'watch'"),
        (
            {"tasks": [CLICK, SALE], "sampling": {**SHIFT, "negatives_of": "sale"}},
            "sampling.negatives_of",
            "in the space of 'click'",
        ),
        (
            {"tasks": [CLICK, WATCH], "sampling": {**SHIFT, "negatives_of": "watch"}},
            "sampling.negatives_of",
            "a regression",
        ),
        ({"tasks": [CLICK], "sampling": {**SHIFT, "negatives_of": "clik"}}, "sampling", "'click'"),
        (
            {"tasks": [WATCH, {**SALE, "space": "watch"}]},
            r"tasks\[1\].space",
            "binary task, got 'watch'",
        ),
        (
            {"tasks": [{**WATCH, "label": {"column": "w", "positive": [1]}}]},
            r"tasks\[0\].label.positive",
            "learns the number itself",
        ),
        ({"tasks": [{**WATCH, "label": {"log": "clicks"}}]}, r"tasks\[0\].label.value", "amount"),
        (
            {"tasks": [{**CLICK, "label": {"log": "clicks", "value": "v"}}]},
            r"tasks\[0\].label.value",
            "no value",
        ),
    ],
)
def test_a_task_that_cannot_be_learnt_so_is_a_fault(
    more: dict[str, Any], path: str, words: str
) -> None:
    faults = check(**more)
    assert len(faults) == 1
    assert re.match(f"{path}.*{words}", faults[0])


@pytest.mark.parametrize(
    "more",
    [
        {"tasks": [CLICK, SALE, {**WATCH, "space": "sale"}], "sampling": SHIFT},
        {"tasks": [CLICK, LIKE, WATCH], "sampling": {**SHIFT, "correct": "weight"}},
        {"tasks": [{**WATCH, "label": {"log": "clicks", "value": "v"}}], "source": LOGS},
    ],
)
def test_sound_tasks_are_no_fault(more: dict[str, Any]) -> None:
    assert check(**more) == []


@pytest.mark.parametrize("column", ["y_watch", "weight_click", "weight_watch"])
def test_a_column_cannot_have_the_name_of_an_answer(column: str) -> None:
    feature = {"kind": "numeric", "columns": [column]}
    (fault,) = check(tasks=[CLICK, WATCH], features=[feature])
    assert repr(column) in fault


def check(**more: Any) -> list[str]:
    """Return the faults of a dataset file."""
    is_joined = any(
        isinstance(task["label"], dict) and "log" in task["label"] for task in more["tasks"]
    )
    value = {
        "name": "toy",
        "source": LOGS if is_joined else {"format": "parquet", "path": "x.parquet"},
        "split": {"by": "hash", "column": "request"},
        "features": [{"kind": "numeric", "columns": ["price"]}],
        **more,
    }
    faults = Faults("dataset")
    check_dataset(read_dataset(value, faults), faults)
    return faults.lines
