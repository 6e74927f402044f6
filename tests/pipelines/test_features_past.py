"""Laws of what prepared rows know of the past, from logs to tensors, against plain Python."""

import math
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines import build, work
from pipelines.events import buckets
from recsys_moe.errors import RequestError

Build = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]
START = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
LAG = 600
HISTORY = {
    "name": "seen",
    "of": "user",
    "events": "click",
    "columns": ["item", "place"],
    "last": 4,
    "lag_seconds": LAG,
}
AGGREGATES = [
    {"name": "shown", "of": "item", "kind": "count"},
    {"name": "rate", "of": "item", "kind": "rate", "target": "click", "prior_weight": 5,
     "window_days": 3},
    {"name": "spent", "of": "user", "kind": "mean", "target": "price", "refresh": "daily"},
    {"name": "bought", "of": "item", "kind": "sum", "target": "sale"},
]  # fmt: skip
FEATURES = [
    {"kind": "categorical", "columns": ["item", "place"]},
    {"kind": "categorical", "columns": ["seen_item"], "table": "item", "max_len": 4},
    {"kind": "categorical", "columns": ["seen_place"], "table": "place", "max_len": 3},
    {"kind": "numeric", "columns": ["shown", "rate", "spent", "bought"]},
]
TASKS = [
    {"name": "click", "label": {"log": "clicks"}},
    {
        "name": "sale",
        "label": {"log": "conversions", "attribution_hours": 30},
        "space": "click",
        "immature": "count",
    },
]
SOURCE = {
    "format": "parquet",
    "impressions": "shown.parquet",
    "join": "request",
    "clicks": "clicks.parquet",
    "conversions": "sales.parquet",
}


def value(**more: Any) -> dict[str, Any]:
    split = {"by": "time", "column": "at", "train_end": "2026-03-07", "valid_end": "2026-03-09"}
    plain = {"name": "shop", "source": SOURCE, "split": split, "tasks": TASKS, "user": "user"}
    return {**plain, "histories": [HISTORY], "aggregates": AGGREGATES, "features": FEATURES, **more}


def logs(seed: int, *, step: int = 1, size: int = 4_000) -> dict[str, pl.DataFrame]:
    """Rows of 300 users, most of them rare; with `step` hours, many moments are the same."""
    draw = np.random.default_rng(seed)
    minutes = draw.integers(0, 10 * 24 * 60, size) // (60 * step) * (60 * step)
    at = [START + timedelta(minutes=int(m)) for m in minutes]
    request = draw.permutation(size).tolist()
    clicked = [i for i in range(size) if draw.random() < 0.3]
    click_at = {i: at[i] + timedelta(minutes=int(draw.integers(0, 300))) for i in clicked}
    sold = [i for i in clicked if draw.random() < 0.5]
    sold_at = [click_at[i] + timedelta(hours=int(draw.integers(0, 40))) for i in sold]
    users = (300 * draw.random(size) ** 3).astype(int)
    when = pl.Datetime("us", "UTC")
    return {
        "shown": pl.DataFrame(
            {
                "request": request,
                "at": pl.Series(at, dtype=when),
                "user": [None if u % 37 == 1 else f"u{u}" for u in users.tolist()],
                "item": [f"i{n}" for n in draw.zipf(1.6, size) % 40],
                "place": [None if n == 3 else n for n in draw.integers(0, 9, size).tolist()],
                "price": [math.nan if x < 0.1 else x for x in draw.random(size).tolist()],
            }
        ),
        "clicks": pl.DataFrame(
            {"impression_id": [request[i] for i in clicked], "ts": [click_at[i] for i in clicked]}
        ).rename({"impression_id": "request"}),
        "sales": pl.DataFrame({"request": [request[i] for i in sold], "ts": sold_at}),
    }


def oracle(frames: dict[str, pl.DataFrame]) -> list[dict[str, Any]]:
    """Return every row with its labels and its past, by looping over all other rows."""
    click = dict(frames["clicks"].iter_rows())
    sale = dict(frames["sales"].iter_rows())
    rows = frames["shown"].to_dicts()
    for row in rows:
        of = row["request"]
        row["click"] = int(of in click)
        row["sale"] = int(of in sale and sale[of] - click[of] <= timedelta(hours=30))
        row["day"] = (row["at"] - START) // DAY
        row["train"] = row["at"] < START + 6 * DAY
    train = [row["click"] for row in rows if row["train"]]
    prior = sum(train) / len(train)
    by_user, by_item = defaultdict(list), defaultdict(list)
    for number, row in enumerate(rows):
        by_user[row["user"]].append((number, row))
        by_item[row["item"]].append(row)
    for row in rows:
        cutoff = row["at"] - timedelta(seconds=LAG)
        events = [
            (click[other["request"]], number, other)
            for number, other in by_user[row["user"]]
            if row["user"] is not None and other["click"] and click[other["request"]] < cutoff
        ]
        newest = [other for *_, other in sorted(events, key=lambda e: e[:2], reverse=True)][:4]
        row["seen_item"] = [other["item"] for other in newest]
        row["seen_place"] = [other["place"] for other in newest]
        past = [o for o in by_item[row["item"]] if o["train"] and o["day"] < row["day"]]
        row["shown"] = float(len(past))
        window = range(row["day"] - 3, row["day"])
        recent = sum(o["day"] in window for o in past)
        clicks = sum(day_of(click, o) in window for o in by_item[row["item"]] if o["train"])
        row["rate"] = (clicks + 5 * prior) / (recent + 5) if recent else prior
        days = [day_of(sale, o) for o in by_item[row["item"]] if o["train"] and o["sale"]]
        row["bought"] = float(sum(day < row["day"] for day in days))
        own = [
            o["price"]
            for _, o in by_user[row["user"]]
            if o["user"] is not None and o["day"] < row["day"] and not math.isnan(o["price"])
        ]
        row["spent"] = sum(own) / len(own) if own else None
    return rows


def day_of(moments: dict[int, datetime], row: dict[str, Any]) -> int:
    """Return the day of a row's event; a day long past where it has none."""
    return (moments[row["request"]] - START) // DAY if row["request"] in moments else -99


def prepared(out: Path) -> pl.DataFrame:
    parts = [pl.read_parquet(out / "prepared" / split) for split in ("train", "valid", "test")]
    return pl.concat(parts).sort("row_id")


@pytest.mark.parametrize(("seed", "step"), [(1, 1), (2, 6)])
@pytest.mark.parametrize("small_buckets", [False, True])
def test_every_row_knows_its_past_and_nothing_else(
    seed: int, step: int, small_buckets: bool, build_features: Build, monkeypatch: Any
) -> None:
    if small_buckets:
        monkeypatch.setattr(buckets, "ROWS_PER_BUCKET", 300)
        monkeypatch.setattr(work, "FILE_ROWS", 501)
    frames = logs(seed, step=step)
    wanted = oracle(frames)

    found = prepared(build_features(value(), frames)).to_dicts()

    assert len(found) == len(wanted)
    for row, right in zip(found, wanted, strict=True):
        for name in ("click", "sale", "seen_item", "seen_place", "shown", "bought"):
            assert row[name] == right[name], (name, row["row_id"])
        assert row["rate"] == pytest.approx(right["rate"], rel=1e-6)
        if right["spent"] is None:
            assert row["spent"] is None
        else:
            assert row["spent"] == pytest.approx(right["spent"], rel=1e-6)
    assert sum(len(row["seen_item"]) == 4 for row in found) > 200
    assert sum(not row["seen_item"] for row in found) > 200


def test_neither_buckets_nor_batches_nor_row_groups_change_a_value(
    build_features: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = logs(3)
    first = build_features(value(), frames)
    monkeypatch.setattr(buckets, "ROWS_PER_BUCKET", 450)
    monkeypatch.setattr(work, "FILE_ROWS", 777)
    for name, frame in frames.items():
        frame.write_parquet(tmp_path / f"{name}.parquet", row_group_size=1_300)

    build.build(value(), folder=tmp_path, output=tmp_path / "out")

    second = tmp_path / "out"
    for name in ("feature_spec.json", *(path.relative_to(first) for path in first.rglob("*.npy"))):
        assert (second / name).read_bytes() == (first / name).read_bytes()
    for path in (*first.glob("vocab/*"), *first.glob("lookup/*")):
        assert (second / path.relative_to(first)).read_bytes() == path.read_bytes()
    assert prepared(second).equals(prepared(first))


def test_labels_after_the_end_of_train_leave_every_fitted_byte_as_it_was(
    build_features: Build, contents: Contents
) -> None:
    frames = logs(4)
    late = frames["shown"].filter(pl.col("at") >= START + 6 * DAY)["request"].to_list()
    swap = dict(zip(late, [*late[1:], late[0]], strict=True))
    shuffled = {
        name: frame.with_columns(pl.col("request").replace(swap)) if name != "shown" else frame
        for name, frame in frames.items()
    }

    one, two = (
        contents(build_features(value(source={**SOURCE, "until": "2026-05-01"}), these))
        for these in (frames, shuffled)
    )

    fitted = ("feature_spec.json", "vocab/", "lookup/", "prepared/train", "tensors/train")
    same = [path for path in one if path.startswith(fitted) and "spent" not in path]
    assert len(same) > 8
    assert all(one[path] == two[path] for path in same)
    assert one["tensors/test/labels.npy"] != two["tensors/test/labels.npy"]


def test_a_table_of_labels_has_a_past_too(build_features: Build) -> None:
    frames = logs(5, size=1_500)
    wanted = oracle(frames)
    rows = frames["shown"].with_columns(click=pl.Series([row["click"] for row in wanted]))
    tasks = [{"name": "click", "label": "click"}]
    source = {"format": "parquet", "path": "shown.parquet"}
    aggregates = AGGREGATES[:3]
    features = [*FEATURES[:3], {"kind": "numeric", "columns": ["shown", "rate", "spent"]}]
    more = {"tasks": tasks, "source": source, "aggregates": aggregates, "features": features}

    found = prepared(build_features(value(**more), {"shown": rows})).to_dicts()

    train = [row for row in wanted if row["train"]]
    prior = sum(row["click"] for row in train) / len(train)
    for row, right in zip(found, wanted, strict=True):
        days = range(right["day"] - 3, right["day"])
        past = [o["click"] for o in train if o["item"] == right["item"] and o["day"] in days]
        assert row["rate"] == pytest.approx((sum(past) + 5 * prior) / (len(past) + 5))
        cutoff = right["at"] - timedelta(seconds=LAG)
        clicks = [o for o in wanted if o["click"] and o["user"] and o["user"] == right["user"]]
        seen = sorted((o["at"], n) for n, o in enumerate(clicks) if o["at"] < cutoff)[-4:]
        assert row["seen_item"] == [clicks[n]["item"] for _, n in reversed(seen)]


def test_what_a_service_looks_up_is_what_the_next_day_would_get(build_features: Build) -> None:
    frames = logs(6)
    tail = frames["shown"].tail(1).with_columns(
        request=pl.lit(-1), at=pl.lit(START + 6 * DAY + timedelta(hours=1)), item=pl.lit("i2")
    ).cast(dict(frames["shown"].schema))  # fmt: skip
    out = build_features(value(), {**frames, "shown": pl.concat([frames["shown"], tail])})

    asked = prepared(out).filter(item="i2").tail(1)
    for name in ("shown", "rate"):
        table = dict(pl.read_parquet(out / "lookup" / f"{name}.parquet").iter_rows())
        assert table["i2"] == asked[name].item()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"histories": [{**HISTORY, "events": "clik"}]}, r"histories\[0\].events.*'click'"),
        ({"histories": [{**HISTORY, "columns": ["price"]}]}, r"histories\[0\].columns\[0\]"),
        ({"histories": [{**HISTORY, "of": "price"}]}, r"histories\[0\].of: wanted a column of sin"),
        ({"histories": [{**HISTORY, "last": 1000}]}, r"histories\[0\].last: wanted a whole number"),
        ({"histories": [{**HISTORY, "size": 3}]}, r"histories\[0\].size"),
        ({"aggregates": [{**AGGREGATES[1], "target": "price"}]}, r"aggregates\[0\].target"),
        ({"aggregates": [{**AGGREGATES[0], "name": "item"}]}, "names that no other column has"),
        ({"aggregates": [{**AGGREGATES[0], "kind": "median"}]}, "count or rate or sum or mean"),
    ],
)
def test_a_wrong_past_is_named(more: dict[str, Any], words: str, build_features: Build) -> None:
    with pytest.raises(RequestError, match=words):
        build_features(value(**more), logs(1, size=200))
