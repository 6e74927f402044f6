"""Laws of joining clicks and conversions to impressions, against a dictionary at a time."""

import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys_moe.errors import DataError, RequestError

Build = Callable[..., Path]
START = datetime(2026, 3, 1, tzinfo=UTC)
HOURS = (6, 24)
SOURCE = {
    "format": "parquet",
    "impressions": "shown.parquet",
    "join": "request",
    "until": "2026-06-01",
    "clicks": {"path": "clicks.parquet", "join": "of", "time": "clicked"},
    "conversions": {"path": ["sales.parquet"], "time": "sold"},
}
TASKS = [
    {"name": "click", "label": {"log": "clicks"}},
    *(
        {
            "name": f"sale_{hours}h",
            "label": {"log": "conversions", "attribution_hours": hours},
            "space": "click",
        }
        for hours in HOURS
    ),
]
SPLIT = {"by": "time", "column": "at", "valid_share": 0.2, "test_share": 0.2}


def value(**more: Any) -> dict[str, Any]:
    features = [{"kind": "categorical", "columns": ["item"]}]
    plain = {"name": "shop", "source": SOURCE, "split": SPLIT, "tasks": TASKS}
    return {**plain, "features": features, **more}


def logs(seed: int, as_text: bool = False) -> dict[str, pl.DataFrame]:
    """Logs with repeated, late, early, orphaned and incomplete events, in no order."""
    draw = np.random.default_rng(seed)

    def name(number: int) -> Any:
        return f"r-{number}" if as_text else number

    def later(moments: list[datetime], hours: float) -> list[datetime | None]:
        spread = draw.integers(-1, int(hours) + 1, len(moments)).tolist()
        return [
            None if draw.random() < 0.03 else moment + timedelta(hours=delay)
            for moment, delay in zip(moments, spread, strict=True)
        ]

    size = 900
    at = [START + timedelta(minutes=int(m)) for m in draw.integers(0, 9_000, size)]
    ids = draw.permutation(size).tolist()
    picked = draw.integers(0, size, 500).tolist()
    sold = draw.integers(0, size, 700).tolist()

    def names(picks: list[int]) -> list[Any]:
        """Name impressions, some that do not exist and some that are missing."""
        found = [name(ids[place]) for place in picks]
        for place in range(0, len(found), 37):
            found[place] = name(10_000 + place) if place % 2 else None
        return found

    shown = pl.DataFrame(
        {
            "request": [name(number) for number in ids],
            "at": at,
            "item": [f"i{n}" for n in draw.integers(0, 9, size)],
            "p_sold": draw.random(size),
        }
    )
    clicks = {"of": names(picked), "clicked": later([at[p] for p in picked], 2), "button": "left"}
    sales = {"request": names(sold), "sold": later([at[p] for p in sold], 40), "euro": 1.5}
    return {"shown": shown, "clicks": pl.DataFrame(clicks), "sales": pl.DataFrame(sales)}


def oracle(frames: dict[str, pl.DataFrame]) -> tuple[dict[Any, list[int]], dict[str, list[str]]]:
    """Return each impression's labels and the reasons of the events that are nobody's."""
    known = set(frames["shown"]["request"])
    first: dict[Any, datetime] = {}
    reasons: dict[str, list[str]] = {"clicks": [], "conversions": []}
    for of, clicked in frames["clicks"].select("of", "clicked").iter_rows():
        if of is None:
            reasons["clicks"].append("of: missing")
        elif clicked is None:
            reasons["clicks"].append("clicked: missing")
        elif of not in known:
            reasons["clicks"].append("request: no such impression")
        else:
            first[of] = min(clicked, first.get(of, clicked))
    labels = {of: [int(of in first)] + [0] * len(HOURS) for of in known}
    for of, sold in frames["sales"].select("request", "sold").iter_rows():
        if of is None:
            reasons["conversions"].append("request: missing")
        elif sold is None:
            reasons["conversions"].append("sold: missing")
        elif of not in known:
            reasons["conversions"].append("request: no such impression")
        elif of not in first:
            reasons["conversions"].append("no click of its impression")
        elif sold < first[of]:
            reasons["conversions"].append("before the first click")
        else:
            for task, hours in enumerate(HOURS, 1):
                labels[of][task] |= int(sold - first[of] <= timedelta(hours=hours))
    return labels, reasons


@pytest.mark.parametrize(("seed", "as_text"), [(1, False), (2, True), (3, False)])
def test_labels_are_those_of_a_dictionary(seed: int, as_text: bool, build_features: Build) -> None:
    frames = logs(seed, as_text)
    wanted, reasons = oracle(frames)

    out = build_features(value(keys=["request"]), frames, max_quarantine_share=0.9)

    names = [task["name"] for task in TASKS]
    seen = {}
    for split in ("train", "valid", "test"):
        rows = pl.read_parquet(out / "prepared" / split)
        assert rows.columns == ["row_id", "request", "at", "item", *names]
        assert rows["row_id"].is_sorted()
        assert frames["shown"][rows["row_id"].to_list()]["request"].equals(rows["request"])
        labels = rows.select(names).rows()
        assert np.load(out / "tensors" / split / "labels.npy").tolist() == [*map(list, labels)]
        assert np.load(out / "tensors" / split / "known.npy").all()
        seen |= dict(zip(rows["request"], map(list, labels), strict=True))
    assert seen == wanted
    assert all(sum(row[task] for row in wanted.values()) > 20 for task in range(len(names)))
    report = json.loads((out / "report.json").read_text())["events"]
    assert len(reasons["conversions"]) > len(set(reasons["conversions"])) >= 4
    for log, file in (("clicks", "clicks"), ("conversions", "sales")):
        assert report[log]["quarantine"] == Counter(reasons[log])
        assert report[log]["rows_in"] == len(frames[file])
        bad = pl.read_parquet(out / "quarantine" / log)
        assert bad["row_id"].is_sorted()
        assert bad["reason"].to_list() == reasons[log]
        assert bad.drop("row_id", "reason").equals(frames[file][bad["row_id"].to_list()])
        assert report[log]["rows_quarantined"] == len(bad)
    converted = sum(row[-1] for row in wanted.values())
    assert report["clicks"]["impressions"] == sum(row[0] for row in wanted.values())
    assert report["conversions"]["impressions"] >= converted
    assert report["conversions"]["late"]["sale_6h"] > report["conversions"]["late"]["sale_24h"] > 0


def test_both_ends_of_the_window_count_and_repeats_count_once(build_features: Build) -> None:
    frames = logs(1)
    shown = frames["shown"]["request"].to_list()
    minutes = [(0, -1), (0, 0), (0, 360), (0, 361), (60, 360), (0, 5), (0, 5)]
    clicks = [(shown[i], START + timedelta(minutes=m)) for i, (m, _) in enumerate(minutes)]
    sales = [(shown[i], START + timedelta(minutes=m)) for i, (_, m) in enumerate(minutes)]
    clicks += [(shown[4], START), *((of, START) for of in shown[200:])]
    sales += [*sales[-2:], *((of, START) for of in shown[300::2])]
    frames["clicks"] = pl.DataFrame(clicks, ["of", "clicked"], orient="row")
    frames["sales"] = pl.DataFrame(sales, ["request", "sold"], orient="row")

    out = build_features(value(tasks=TASKS[:2], keys=["request"]), frames)

    rows = pl.concat(pl.read_parquet(path) for path in sorted((out / "prepared").glob("*")))
    labels = dict(rows.select("request", "sale_6h").iter_rows())
    assert [labels[of] for of in shown[:7]] == [0, 1, 1, 0, 1, 1, 1]
    report = json.loads((out / "report.json").read_text())["events"]
    assert report["clicks"]["repeated"] == 1
    assert report["conversions"]["repeated"] == 2
    assert report["conversions"]["late"] == {"sale_6h": 1}


def test_csv_logs_are_parquet_logs(
    build_features: Build, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    frames = logs(2, as_text=True)
    first = build_features(value(), frames, max_quarantine_share=0.9)
    clicks = {**SOURCE["clicks"], "path": "clicks.csv"}  # type: ignore[dict-item]
    sales = {"path": "sales.csv", "time": "sold"}
    types = dict.fromkeys(("at", "clicked", "sold"), "datetime")
    source = {**SOURCE, "format": "csv", "types": types, "impressions": "shown.csv"}
    source |= {"clicks": clicks, "conversions": sales}
    named = {f"{name}.csv": frame for name, frame in frames.items()}
    second = build_features(value(source=source), named, max_quarantine_share=0.9)

    for folder in ("prepared", "tensors", "vocab"):
        assert contents(first / folder) == contents(second / folder)


def test_a_click_log_alone_needs_no_times(build_features: Build) -> None:
    frames = logs(1)
    frames["clicks"] = frames["clicks"].select("of").drop_nulls()
    source = {name: SOURCE[name] for name in ("format", "impressions", "join")}
    source["clicks"] = {"path": "clicks.parquet", "join": "of"}

    out = build_features(value(source=source, tasks=TASKS[:1]), frames, max_quarantine_share=0.5)

    rows = pl.concat(pl.read_parquet(path) for path in sorted((out / "prepared").glob("*")))
    known = set(frames["shown"]["request"]) & set(frames["clicks"]["of"])
    assert rows["click"].sum() == len(known)


def test_too_many_orphans_of_one_log_are_too_bad(build_features: Build) -> None:
    with pytest.raises(DataError, match="of the clicks in quarantine, got"):
        build_features(value(), logs(1), max_quarantine_share=0.001)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"features": [{"kind": "categorical", "columns": ["clicked"]}]}, "'clicked', the time of"),
        ({"features": [{"kind": "categorical", "columns": ["button"]}]}, "got 'button'"),
        ({"features": [{"kind": "numeric", "name": "x", "column": "at"}]}, "'at', the split"),
        ({"source": {**SOURCE, "clicks": None}}, "log: wanted a log that the source names"),
        ({"source": {**SOURCE, "path": "shown.parquet"}}, "source.impressions: wanted either"),
        ({"source": {**SOURCE, "conversions": None}}, r"tasks\[1\].label.log.*'conversions'"),
        ({"source": {**SOURCE, "join": "p_sold"}}, "source.join: .*'p_sold', which holds floats"),
        ({"source": {**SOURCE, "clicks": "none.parquet"}}, "source.clicks: .*none.parquet"),
        ({"source": {**SOURCE, "join": "reqest"}}, "source.join: .*Did you mean 'request'"),
        ({"source": {**SOURCE, "clicks": "clicks.parquet"}}, "source.clicks.join: .*'request'"),
        (
            {"source": {**SOURCE, "conversions": {"path": "sales.parquet", "time": "euro"}}},
            "source.conversions.time: wanted dates and times",
        ),
        (
            {
                "source": {
                    **SOURCE,
                    "clicks": {"path": "clicks.parquet", "join": "button", "time": "clicked"},
                }
            },
            "source.clicks.join: wanted int64, as 'request'",
        ),
        (
            {"tasks": [{"name": "sale", "label": {"log": "conversions"}}]},
            r"tasks\[0\].label.attribution_hours: wanted a number, got nothing",
        ),
        ({"tasks": [{"name": "c", "label": {"log": "click"}}]}, "Did you mean 'clicks'"),
        ({"split": {"by": "file", "valid_share": 0.2}}, "source.train: wanted files"),
    ],
)
def test_a_wrong_request_names_the_thing(
    more: dict[str, Any], words: str, build_features: Build
) -> None:
    with pytest.raises(RequestError, match=words):
        build_features(value(**more), logs(1))
