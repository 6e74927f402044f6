"""Laws of aggregates, against plain dictionaries and loops."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pipelines.dataset.past_roles import AggregateRole
from pipelines.past.aggregates import aggregate, lookup
from pipelines.past.histories import MICROS_PER_DAY

FIRST_DAY = 20_000
PRIOR = 0.3


def role(kind: str, **more: Any) -> AggregateRole:
    plain = {"path": "aggregates[0]", "name": "of_item", "of": "item", "target": "click"}
    sizes = {"prior_weight": 5.0, "window_days": None, "lag_days": 0, "refresh": "daily"}
    return AggregateRole(**{**plain, **sizes, "kind": kind, **more})


def log(seed: int, text: bool = True, labels: bool = False) -> pl.DataFrame:
    """Rows of 300 entities, most of them rare, over 40 days, the last 10 of which never count."""
    draw = np.random.default_rng(seed)
    size = 1_500
    item = np.minimum(draw.zipf(1.3, size), 300)
    value = draw.integers(0, 2, size) * 1.0 if labels else draw.normal(size=size) * 10.0**6
    odd = draw.random(size)
    value[odd < 0.02] = np.nan
    value[odd > 0.99] = np.inf
    day = draw.integers(0, 40, size)
    rows = {
        "row_id": draw.permutation(size),
        "key": [None if draw.random() < 0.02 else f"i{n}" if text else int(n) for n in item],
        "time": (FIRST_DAY + day) * MICROS_PER_DAY + draw.integers(0, MICROS_PER_DAY, size),
        "value": [None if x < 0.2 else y for x, y in zip(draw.random(size), value, strict=True)],
        "counts": (draw.random(size) < 0.8) & (day < 30),
    }
    return pl.DataFrame(rows).with_columns(pl.col("value").cast(pl.Float64))


def added(past: list[dict[str, Any]], asked: AggregateRole, day: int) -> float | None:
    """Aggregate rows in the order of their ids, as of a day: day by day, one after the other."""
    end = day - asked.lag_days
    start = -(10**9) if asked.window_days is None else end - asked.window_days
    days: dict[int, float] = {}
    rows = known = 0
    for row in past:
        of = row["time"] // MICROS_PER_DAY
        if row["counts"] and start <= of < end:
            rows += 1
            if row["value"] is not None and np.isfinite(row["value"]):
                known += 1
                days[of] = days.get(of, 0.0) + row["value"]
    total = 0.0
    for of in sorted(days):
        total += days[of]
    if asked.kind == "count":
        return rows
    if asked.kind == "sum":
        return total
    if asked.kind == "mean":
        return total / known if known else None
    return (total + asked.prior_weight * PRIOR) / (known + asked.prior_weight) if known else PRIOR


def oracle(rows: pl.DataFrame, asked: AggregateRole) -> pl.DataFrame:
    past: dict[Any, list[dict[str, Any]]] = {}
    ordered = sorted(rows.to_dicts(), key=lambda row: row["row_id"])
    for row in ordered:
        past.setdefault(row["key"], []).append(row)
    past[None] = []
    values = [added(past[row["key"]], asked, row["time"] // MICROS_PER_DAY) for row in ordered]
    found = {"row_id": [row["row_id"] for row in ordered], "of_item": values}
    return pl.DataFrame(found, schema={"row_id": pl.Int64, "of_item": pl.Float32}, strict=False)


@pytest.mark.parametrize("kind", ["count", "sum", "mean", "rate"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"window_days": 1},
        {"window_days": 7},
        {"lag_days": 3},
        {"window_days": 60},
        {"window_days": 5, "lag_days": 50},
        {"window_days": 4, "lag_days": 2},
    ],
)
def test_an_aggregate_is_what_a_loop_over_earlier_days_adds_up(
    kind: str, more: dict[str, Any]
) -> None:
    for seed, text in ((0, True), (1, False)):
        rows = log(seed, text)

        assert_frame_equal(
            aggregate(rows, role(kind, **more), PRIOR),
            oracle(rows, role(kind, **more)),
            check_exact=True,
        )


def test_the_day_itself_and_the_future_cannot_leak() -> None:
    rows, today = log(2), FIRST_DAY + 20
    is_future = pl.col("time") // MICROS_PER_DAY >= today
    changed = rows.with_columns(
        value=pl.when(is_future).then(1e9).otherwise("value"), counts=is_future | pl.col("counts")
    )
    until_today = pl.col("row_id").is_in(
        rows.filter(pl.col("time") // MICROS_PER_DAY <= today)["row_id"].implode()
    )

    for asked in (role("count"), role("sum"), role("mean", window_days=3), role("rate")):
        before, after = (aggregate(some, asked, PRIOR) for some in (rows, changed))
        assert_frame_equal(before.filter(until_today), after.filter(until_today))
        assert not before.equals(after)


def test_a_window_does_not_carry_the_rounding_of_what_lies_before_it() -> None:
    days = [0, 1, 2, 3]
    rows = pl.DataFrame(
        {
            "row_id": days,
            "key": ["a"] * 4,
            "time": [day * MICROS_PER_DAY for day in days],
            "value": [1e17, 0.1, 0.2, 0.0],
            "counts": [True] * 4,
        }
    )

    found = aggregate(rows, role("sum", window_days=2), PRIOR)

    assert found["of_item"].to_list() == pytest.approx([0, 1e17, 1e17, 0.3], rel=1e-7)


@pytest.mark.parametrize("labels", [True, False])
def test_neither_order_nor_buckets_change_a_digit(labels: bool) -> None:
    rows = log(3, labels=labels)
    bucket = pl.col("key").str.len_chars()

    for asked in (role("rate"), role("sum"), role("mean", window_days=9)):
        whole = aggregate(rows, asked, PRIOR)
        mixed = aggregate(rows.sample(fraction=1, shuffle=True, seed=1), asked, PRIOR)
        parts = [rows.filter(bucket.eq_missing(size)) for size in (None, 2, 3, 4)]
        buckets = pl.concat(aggregate(part, asked, PRIOR) for part in parts)
        for other in (mixed, buckets.sort("row_id")):
            assert_frame_equal(other, whole, check_exact=True)


def test_what_a_service_looks_up_is_what_a_row_of_that_day_would_get() -> None:
    rows = log(4)
    counting = rows.filter("counts", pl.col("key").is_not_null())
    day = int(counting["time"].max() // MICROS_PER_DAY) + 1
    keys = rows.filter("counts")["key"].drop_nulls().unique().sort()
    asking = pl.DataFrame({"row_id": range(10_000, 10_000 + len(keys)), "key": keys}).with_columns(
        time=pl.lit(day * MICROS_PER_DAY), value=pl.lit(None, pl.Float64), counts=pl.lit(False)
    )

    for kind in ("count", "sum", "mean", "rate"):
        for more in ({}, {"window_days": 4}, {"lag_days": 3}):
            asked = role(kind, **more)
            got = aggregate(pl.concat([rows, asking]), asked, PRIOR).tail(len(keys))
            count = aggregate(pl.concat([rows, asking]), role("count", **more), 0).tail(len(keys))
            wanted = pl.DataFrame({"key": keys, "value": got["of_item"]})

            found = lookup(rows, asked, PRIOR, day)

            assert_frame_equal(found, wanted.filter(count["of_item"] > 0))


def test_without_a_past_a_rate_is_the_prior_and_a_mean_unknown() -> None:
    rows = log(6).with_columns(counts=pl.lit(False))
    wanted = {"count": 0.0, "sum": 0.0, "mean": None, "rate": np.float32(PRIOR)}

    for kind, value in wanted.items():
        assert set(aggregate(rows, role(kind), PRIOR)["of_item"]) == {value}
        assert aggregate(rows.clear(), role(kind), PRIOR).is_empty()
        assert lookup(rows, role(kind), PRIOR, FIRST_DAY).is_empty()
