"""Laws of rows that are left out or count differently: young, sampled, in a gap, repeated."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys_moe.errors import RequestError
from recsys_moe.spec import FeatureSpec

Build = Callable[..., Path]
START = datetime(2026, 3, 1, tzinfo=UTC)
WINDOW = timedelta(hours=24)
SOURCE = {
    "format": "parquet",
    "impressions": "shown.parquet",
    "join": "request",
    "clicks": "clicks.parquet",
    "conversions": "sales.parquet",
}
SPLIT = {"by": "time", "column": "at", "train_end": "2026-03-08", "valid_end": "2026-03-09"}
BY_HASH = {"by": "hash", "column": "request", "valid_share": 0.1, "test_share": 0.1}
SPLITS = ("train", "valid", "test")


def value(immature: str = "drop", **more: Any) -> dict[str, Any]:
    label = {"log": "conversions", "attribution_hours": 24}
    sale = {"name": "sale", "label": label, "space": "click", "immature": immature}
    plain = {"name": "shop", "source": SOURCE, "split": SPLIT, "keys": ["request"]}
    tasks = [{"name": "click", "label": {"log": "clicks"}}, sale]
    features = [{"kind": "categorical", "columns": ["item"]}]
    return {**plain, "tasks": tasks, "features": features, **more}


def logs(seed: int, size: int = 6_000) -> dict[str, pl.DataFrame]:
    """Ten days of rows whose logs end with the last: conversions take twelve hours on average."""
    draw = np.random.default_rng(seed)
    end = START + timedelta(days=10)
    at = [START + timedelta(seconds=int(s)) for s in draw.integers(0, 864_000, size)]
    click = {
        i: at[i] + timedelta(seconds=int(draw.exponential(1800)))
        for i in range(size)
        if draw.random() < 0.4
    }
    click = {i: moment for i, moment in click.items() if moment <= end}
    sale = {
        i: moment + timedelta(seconds=int(draw.exponential(43_200)))
        for i, moment in click.items()
        if draw.random() < 0.6
    }
    sale = {i: moment for i, moment in sale.items() if moment <= end}
    item = [f"i{n}" for n in draw.integers(0, 9, size)]
    return {
        "shown": pl.DataFrame({"request": range(size), "at": at, "item": item}),
        "clicks": pl.DataFrame({"request": [*click], "ts": [*click.values()]}),
        "sales": pl.DataFrame({"request": [*sale], "ts": [*sale.values()]}),
    }


def prepared(out: Path, split: str) -> pl.DataFrame:
    return pl.read_parquet(out / "prepared" / split)


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def young(frames: dict[str, pl.DataFrame]) -> set[int]:
    """Return the rows whose window is open at the latest event, one by one."""
    click = dict(frames["clicks"].iter_rows())
    until = max([*click.values(), *frames["sales"]["ts"].to_list()])
    starts = ((of, at, click.get(of, at)) for of, at, _ in frames["shown"].iter_rows())
    return {of for of, at, start in starts if until - max(at, start) < WINDOW}


def test_dropped_rows_are_those_whose_window_is_open(build_features: Build) -> None:
    frames = logs(1)

    out = build_features(value("drop"), frames)

    kept = pl.concat(prepared(out, split) for split in SPLITS)
    assert set(frames["shown"]["request"]) - set(kept["request"]) == young(frames)
    counts = report(out)
    assert counts["dropped"] == {"too young: sale may still come": len(young(frames))}
    assert counts["rows_in"] == counts["rows_out"] + counts["rows_dropped"]


@pytest.mark.parametrize("immature", ["mask", "weight"])
def test_young_labels_are_unknown_where_they_are_not_weighted(
    immature: str, build_features: Build
) -> None:
    frames = logs(2)

    out = build_features(value(immature, split=BY_HASH, time="at"), frames)

    for split in SPLITS:
        rows = prepared(out, split)
        assert rows["click"].null_count() == 0
        open_rows = rows.filter(pl.col("request").is_in(young(frames)))
        known = open_rows["sale"].is_not_null()
        assert len(open_rows) > 50
        assert known.all() if (immature, split) == ("weight", "train") else not known.any()
        known_NT = np.load(out / "tensors" / split / "known.npy")
        mature = ~rows["request"].is_in(young(frames)).to_numpy()
        assert (known_NT[mature] == 1).all()
        if (immature, split) == ("weight", "train"):
            weights = open_rows.filter(click=1)
            sold, unsold = (weights.filter(sale=sale)["weight_sale"] for sale in (1, 0))
            assert sold.min() >= 1 >= unsold.max() > 0
            assert np.array_equal(rows["weight_sale"].to_numpy(), known_NT[:, 1])


def test_weights_make_up_for_the_conversions_to_come(build_features: Build) -> None:
    frames = logs(3, 40_000)
    rates = {}
    for immature in ("drop", "weight", "count"):
        out = build_features(value(immature, split=BY_HASH, time="at"), frames)
        rows = prepared(out, "train").filter(click=1)
        if immature != "drop":
            rows = rows.filter(pl.col("request").is_in(young(frames)))
        weight = rows["weight_sale"] if immature == "weight" else pl.Series([1.0] * len(rows))
        rates[immature] = float((rows["sale"] * weight).sum() / weight.sum())
    assert rates["count"] < 0.75 * rates["drop"]
    assert rates["weight"] == pytest.approx(rates["drop"], abs=0.05)


def test_a_gap_keeps_the_splits_apart(build_features: Build) -> None:
    frames = logs(4)

    out = build_features(value("count", split={**SPLIT, "gap_hours": 6}), frames)

    first, second = START + timedelta(days=7), START + timedelta(days=8)
    gap = timedelta(hours=6)
    at = {split: prepared(out, split)["at"].to_list() for split in SPLITS}
    micros = {split: [START + timedelta(microseconds=t - START.timestamp() * 1e6) for t in ts]
              for split, ts in at.items()}  # fmt: skip
    assert max(micros["train"]) < first <= first + gap <= min(micros["valid"])
    assert max(micros["valid"]) < second <= second + gap <= min(micros["test"])
    inside = [
        t for t in frames["shown"]["at"] if first <= t < first + gap or second <= t < second + gap
    ]
    assert report(out)["dropped"] == {"in the gap between splits": len(inside)}


@pytest.mark.parametrize("correct", ["shift", "weight"])
def test_thinned_negatives_are_counted_and_made_up_for(correct: str, build_features: Build) -> None:
    frames = logs(5)
    sampling = {"negatives_of": "click", "keep_rate": 0.25, "correct": correct}
    whole = build_features(value("count"), frames)

    out = build_features(value("count", sampling=sampling), frames)

    for split in ("valid", "test"):
        assert prepared(out, split)["request"].equals(prepared(whole, split)["request"])
    all_rows, rows = prepared(whole, "train"), prepared(out, "train")
    assert rows.filter(click=1)["request"].equals(all_rows.filter(click=1)["request"])
    negatives = len(all_rows.filter(click=0))
    assert len(rows.filter(click=0)) == pytest.approx(negatives / 4, rel=0.1)
    dropped = {"a negative of click not sampled": len(all_rows) - len(rows)}
    assert report(out)["dropped"] == dropped
    keep_rate = FeatureSpec.load(out / "feature_spec.json").task("click").keep_rate
    assert keep_rate == (0.25 if correct == "shift" else 1.0)
    known_NT = np.load(out / "tensors" / "train" / "known.npy")
    weighted = known_NT[rows["click"].to_numpy() == 0, 0]
    assert (weighted == (1.0 if correct == "shift" else 4.0)).all()


def test_a_request_that_comes_twice_counts_once(build_features: Build) -> None:
    frames = logs(6)
    again = frames["shown"].sample(40, seed=1)
    frames["shown"] = pl.concat([frames["shown"], again])

    out = build_features(value("count"), frames)

    bad = pl.read_parquet(out / "quarantine" / "*.parquet")
    assert bad["reason"].unique().to_list() == ["duplicate of an earlier row"]
    assert bad["row_id"].to_list() == list(range(6_000, 6_040))
    assert bad["request"].to_list() == again["request"].to_list()


def test_unique_keys_of_a_table_are_looked_at_too(
    build_features: Build, dataset_of: Any, frame: Any
) -> None:
    rows = frame(500, 1).with_columns(pl.int_range(500).alias("id"))
    again = pl.concat([rows, rows.head(3), rows.tail(2).with_columns(item=pl.lit("other"))])
    features = [{"kind": "categorical", "columns": ["item"]}]
    split = {"by": "hash", "column": "id", "valid_share": 0.2, "test_share": 0.2}
    source = {"format": "parquet", "path": "train.parquet"}
    more = {"source": source, "split": split, "keys": ["id"]}

    for unique in (True, False):
        dataset = dataset_of(features, **more, unique_keys=unique)
        out = build_features(dataset, {"train": again}, max_quarantine_share=0.02)
        counts = report(out)
        assert counts["quarantine"] == ({"duplicate of an earlier row": 5} if unique else {})
        assert counts["rows_out"] == (500 if unique else 505)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"split": {**SPLIT, "valid_end": "2026-03-01"}}, "split.valid_end: wanted a moment after"),
        ({"split": {**SPLIT, "train_end": "soon"}}, "split.train_end: wanted a date or time"),
        ({"split": {"by": "hash", "column": "at"}, "time": None}, "time: wanted the column"),
        ({"sampling": {"negatives_of": "click", "keep_rate": 0}}, "sampling.keep_rate"),
        ({"sampling": {"negatives_of": "clik", "keep_rate": 0.5}}, "sampling.negatives_of"),
    ],
)
def test_a_wrong_request_is_named(more: dict[str, Any], words: str, build_features: Build) -> None:
    with pytest.raises(RequestError, match=words):
        build_features(value(**more), logs(1, 300))


def test_a_row_that_breaks_a_rule_of_the_user_is_set_aside(build_features: Build) -> None:
    frames = logs(7, 2_000)
    rows = frames["shown"].with_columns(price=pl.int_range(pl.len()) % 50 - 1)
    rules = [
        {"name": "price", "expression": "price >= 0"},
        {"name": "even items", "expression": 'item not in ("i1", "i3") or price > 10'},
    ]

    out = build_features(
        value("count", rules=rules), {**frames, "shown": rows}, max_quarantine_share=0.5
    )

    bad = pl.read_parquet(out / "quarantine" / "*.parquet")
    wanted = {}
    for row_id, row in enumerate(rows.to_dicts()):
        reasons = []
        if row["price"] < 0:
            reasons.append("rule price: broken")
        if row["item"] in ("i1", "i3") and row["price"] <= 10:
            reasons.append("rule even items: broken")
        if reasons:
            wanted[row_id] = "; ".join(reasons)
    assert dict(bad.select("row_id", "reason").iter_rows()) == wanted
    assert any(";" in reason for reason in wanted.values())
    for text, words in (("price >", "expression"), ("prise > 0", "'prise'"), ("item + 1", "item")):
        rule = [{"name": "x", "expression": text}]
        with pytest.raises(RequestError, match=rf"rules\[0\].expression.*{words}"):
            build_features(value("count", rules=rule), {**frames, "shown": rows})
