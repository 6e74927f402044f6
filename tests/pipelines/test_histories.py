"""Laws of histories, against plain lists and loops."""

from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pipelines.dataset.past_roles import HistoryRole
from pipelines.past.histories import MICROS_PER_DAY, capped, history

HOUR = MICROS_PER_DAY // 24
START = 20_000 * MICROS_PER_DAY


def role(**more: Any) -> HistoryRole:
    plain = {"path": "histories[0]", "name": "seen", "of": "user", "events": "click"}
    sizes = {"columns": ("item", "place"), "last": 5, "lag_seconds": 0.0, "max_per_day": 2000}
    return HistoryRole(**{**plain, **sizes, **more})


def log(seed: int, text: bool = True, step: int = 6 * HOUR) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows and events of 300 users, most of them rare, at moments that many of them share."""
    draw = np.random.default_rng(seed)
    size = 4_000
    user = np.minimum(draw.zipf(1.3, size), 300)
    key = [None if draw.random() < 0.02 else f"user {n}" if text else int(n) for n in user]
    moment = START + draw.integers(0, 12 * MICROS_PER_DAY, size) // step * step
    rows = pl.DataFrame({"row_id": draw.permutation(size), "key": key, "time": moment})
    some = rows.sample(1_500, seed=seed)
    events = some.with_columns(
        time=pl.col("time") + pl.Series(draw.integers(0, 3, 1_500) * step),
        item=pl.Series([None if x < 0.1 else f"item {x:.2f}" for x in draw.random(1_500)]),
        place=pl.Series(draw.integers(0, 9, 1_500)),
    )
    return rows, events


def oracle(rows: pl.DataFrame, events: pl.DataFrame, asked: HistoryRole) -> list[dict[str, Any]]:
    past: dict[Any, list[dict[str, Any]]] = {}
    for event in sorted(events.to_dicts(), key=lambda e: (e["time"], e["row_id"])):
        past.setdefault(event["key"], []).append(event)
    for key, found in past.items():
        days: Counter[int] = Counter()
        kept = []
        for event in found:
            days[event["time"] // MICROS_PER_DAY] += 1
            if days[event["time"] // MICROS_PER_DAY] <= asked.max_per_day:
                kept.append(event)
        past[key] = kept
    wanted = []
    for row in sorted(rows.to_dicts(), key=lambda r: r["row_id"]):
        found = [] if row["key"] is None else past.get(row["key"], [])
        before = row["time"] - asked.lag_seconds * 1e6
        newest = [event for event in reversed(found) if event["time"] < before][: asked.last]
        lists = {f"seen_{name}": [event[name] for event in newest] for name in asked.columns}
        wanted.append({"row_id": row["row_id"], **lists})
    return wanted


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"last": 1},
        {"last": 512},
        {"lag_seconds": 21_600.0},
        {"lag_seconds": 0.000001},
        {"max_per_day": 2},
        {"max_per_day": 1, "lag_seconds": 3_600.5, "columns": ("place",)},
    ],
)
def test_a_history_is_what_a_loop_over_the_log_finds(text: bool, more: dict[str, Any]) -> None:
    for seed in range(2):
        rows, events = log(seed, text)

        assert history(rows, events, role(**more)).to_dicts() == oracle(rows, events, role(**more))


def test_an_event_of_the_same_moment_is_not_of_the_past() -> None:
    rows = pl.DataFrame({"row_id": [1, 2], "key": ["a", "a"], "time": [START, START + 1]})
    events = pl.DataFrame({"key": ["a"], "time": [START], "row_id": [0], "item": ["x"]})

    found = history(rows, events, role(columns=("item",)))

    assert found["seen_item"].to_list() == [[], ["x"]]


def test_the_future_cannot_leak() -> None:
    rows, events = log(3)
    now = START + 6 * MICROS_PER_DAY
    is_future = pl.col("time") >= now
    changed = events.with_columns(item=pl.when(is_future).then(pl.lit("?")).otherwise("item"))
    changed = pl.concat([changed, changed.filter(is_future)])
    before = rows.filter(pl.col("time") <= now)

    for asked in (role(), role(max_per_day=1)):
        assert_frame_equal(history(before, changed, asked), history(before, events, asked))


def test_two_rare_users_never_share_a_history() -> None:
    rows, events = log(4)
    of = dict(rows.select("row_id", "key").iter_rows())
    named = events.with_columns(item="key")

    found = history(rows, named, role(columns=("item",), last=512))

    for row, users in found.iter_rows():
        assert set(users) <= {of[row]} - {None}


def test_neither_order_nor_slices_nor_buckets_change_a_history() -> None:
    rows, events = log(5)
    whole = history(rows, events, role(max_per_day=2))

    mixed = history(
        rows.sample(fraction=1, shuffle=True, seed=1), events.reverse(), role(max_per_day=2)
    )
    slices = pl.concat(history(part, events, role(max_per_day=2)) for part in rows.iter_slices(999))
    bucket = pl.col("key").str.len_chars()
    buckets = pl.concat(
        history(
            rows.filter(bucket.eq_missing(size)),
            events.filter(bucket.eq_missing(size)),
            role(max_per_day=2),
        )
        for size in (None, 6, 7, 8)
    )

    for other in (mixed, slices.sort("row_id"), buckets.sort("row_id")):
        assert_frame_equal(other, whole)


def test_the_cap_counts_what_it_leaves_out() -> None:
    _, events = log(6)
    day = pl.col("time") // MICROS_PER_DAY
    per_day = (
        events.drop_nulls("key")
        .group_by("key", day.alias("day"))
        .len()["len"]
        .to_numpy()
        .astype(int)
    )

    kept, left_out = capped(events, role(max_per_day=2))

    assert left_out == np.maximum(per_day - 2, 0).sum() > 0
    assert len(kept) == np.minimum(per_day, 2).sum()
    assert capped(kept, role(max_per_day=2))[1] == 0
    assert capped(events, role())[1] == 0


def test_nobody_nothing_and_never_have_empty_lists_of_the_right_type() -> None:
    rows, events = log(7)
    nameless = rows.with_columns(key=pl.lit(None, pl.String))
    timeless = rows.with_columns(time=pl.lit(None, pl.Int64))

    cases = [(rows, events.clear()), (nameless, events), (timeless, events), (rows.clear(), events)]
    for some, past in cases:
        found = history(some, past, role())

        assert found.schema == {
            "row_id": pl.Int64,
            "seen_item": pl.List(pl.String),
            "seen_place": pl.List(pl.Int64),
        }
        assert len(found) == len(some)
        assert found["seen_item"].list.len().sum() == found["seen_place"].null_count() == 0
