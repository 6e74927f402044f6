"""The features report: every number against plain Python over the prepared rows."""

import json
import math
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines import build
from pipelines.report.report import BuildCounts, write_report
from recsys_moe.errors import DataError
from recsys_moe.spec import FeatureSpec

START = datetime(2026, 3, 1, tzinfo=UTC)
EDGES = [-1.0, 0.0, 0.5, 2.0]
SPLITS = ("train", "valid", "test")


def rows(count: int, seed: int, shift: float = 0.0, words: int = 12, bare: float = 0.1) -> Any:
    """Rows whose values move by `shift`, of which a share `bare` is missing."""
    draw = np.random.default_rng(seed)

    def thinned(values: list[Any], share: float) -> list[Any]:
        return [None if x < share else v for v, x in zip(values, draw.random(count), strict=True)]

    word = [f"w{n}" for n in draw.integers(0, words, count)]
    lists = [[f"t{n}" for n in draw.integers(0, 5, size)] for size in draw.integers(0, 4, count)]
    click = draw.random(count) < 0.3
    return pl.DataFrame(
        {
            "word": thinned(word, bare),
            "tags": [thinned_list(tags, draw) for tags in lists],
            "campaign": draw.integers(0, 400, count),
            "size": thinned((draw.normal(size=count) + shift).round(2).tolist(), bare),
            "same": [7] * count,
            "at": [START + timedelta(minutes=int(m)) for m in draw.integers(0, 6000, count)],
            "click": click.astype(int),
            "buy": [None if x < 0.2 else int(x > 0.7) for x in draw.random(count)],
        },
        schema_overrides={"tags": pl.List(pl.String)},
    )


def thinned_list(tags: list[str], draw: np.random.Generator) -> list[str | None]:
    return [None if x < 0.05 else tag for tag, x in zip(tags, draw.random(len(tags)), strict=True)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A features folder whose test split has moved and knows words that train does not."""
    folder = tmp_path_factory.mktemp("report")
    rows(14_000, 1).write_parquet(folder / "train.parquet")
    rows(11_000, 2).write_parquet(folder / "valid.parquet")
    rows(12_000, 3, shift=0.6, words=19, bare=0.35).write_parquet(folder / "test.parquet")
    value = {
        "name": "shop <i>",
        "source": {"format": "parquet", **{split: f"{split}.parquet" for split in SPLITS}},
        "split": {"by": "file"},
        "time": "at",
        "tasks": [
            {"name": "click", "label": "click"},
            {"name": "buy", "label": "buy", "space": "click"},
        ],
        "features": [
            {"kind": "categorical", "columns": ["word", "same"], "num_oov": 3},
            {"kind": "categorical", "name": "tags", "column": "tags", "max_len": 2},
            {"kind": "hashed", "name": "campaign", "column": "campaign", "num_buckets": 16},
            {"kind": "bucketized", "name": "size_bin", "column": "size", "edges": EDGES},
            {"kind": "numeric", "name": "size", "column": "size"},
            {"kind": "numeric", "name": "size_flag", "column": "size", "missing_flag": True},
        ],
    }
    build.build(value, folder=folder, output=folder / "out", max_quarantine_share=0.0)
    return folder / "out"


@pytest.fixture(scope="module")
def report(built: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((built / "report.json").read_text())
    return value


@pytest.fixture(scope="module")
def prepared(built: Path) -> dict[str, pl.DataFrame]:
    return {split: pl.read_parquet(built / "prepared" / split / "*.parquet") for split in SPLITS}


def feature_values(frame: pl.DataFrame, name: str) -> list[list[Any]]:
    """The values of a feature by row: of a list its first two."""
    column = "size" if name.startswith("size") else name
    return [v[:2] if isinstance(v, list) else [v] for v in frame[column].to_list()]


def bins_of(name: str, train: list[Any]) -> Callable[[Any], Any]:
    """Where values fall: on words or buckets of train, or in tenths of its numbers."""
    if name in ("size", "size_flag", "size_bin"):
        known = sorted(value for value in train if value is not None)
        tenths = [known[math.ceil(n / 10 * len(known)) - 1] for n in range(1, 10)]
        edges = EDGES if name == "size_bin" else tenths
        return lambda value: sum(value > edge for edge in edges)
    words = set(train)
    return lambda value: value if value in words else "unseen"


def drift_by_hand(name: str, train: list[list[Any]], other: list[list[Any]]) -> float:
    place = bins_of(name, [value for row in train for value in row])
    places = {v: place(v) for v in {v for row in train + other for v in row} - {None}}
    counts = []
    for given in (train, other):
        found = [places.get(value, "missing") for row in given for value in row or [None]]
        counts.append(Counter(found))
    bins = {*counts[0], *counts[1]}
    total = 0.0
    for one in bins:
        p, q = (max(count[one] / count.total(), 1e-4) for count in counts)
        total += (q - p) * math.log(q / p)
    return total


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["word", "same", "tags", "campaign", "size", "size_flag"])
def test_counts_are_those_of_a_plain_count(report, prepared, name: str, split: str):
    given = feature_values(prepared[split], name)
    words = {value for row in feature_values(prepared["train"], name) for value in row}
    flat = [value for row in given for value in row]

    found = report["splits"][split]["features"][name]

    missing = sum(value is None for value in flat)
    covered = sum(any(value is not None for value in row) for row in given)
    assert (found["values"], found["missing"]) == (len(flat), missing)
    assert found["missing_rate"] == pytest.approx(missing / len(flat), abs=1e-9)
    assert found["coverage"] == pytest.approx(covered / len(given), abs=1e-9)
    assert ("oov" in found) == (name in ("word", "same", "tags"))
    if "oov" in found:
        assert found["oov"] == sum(value not in words for value in flat if value is not None)
        assert (found["oov"] > 0) == (name == "word" and split == "test")
    assert ("empty_lists" in found) == (name == "tags")
    if name == "tags":
        assert found["empty_lists"] == sum(not row for row in given)


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("name", ["word", "same", "tags", "size_bin", "size", "size_flag"])
def test_drift_is_that_of_a_plain_count(report, prepared, name: str, split: str):
    by_hand = drift_by_hand(
        name, feature_values(prepared["train"], name), feature_values(prepared[split], name)
    )

    assert report["drift"]["judged"] == ["valid", "test"]
    assert report["drift"]["psi"][split][name] == pytest.approx(by_hand, abs=2e-6)
    moved = split == "test" and name not in ("same", "tags")
    assert (by_hand > 0.25) == moved


def test_labels_are_counted_in_their_space_and_by_day(report, prepared):
    for split, frame in prepared.items():
        found = report["splits"][split]["tasks"]
        days: dict[str, list[int]] = {}
        for row in frame.iter_rows(named=True):
            if row["click"] == 1 and row["buy"] is not None:
                moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=row["at"])
                days.setdefault(moment.date().isoformat(), []).append(row["buy"])
        buys = [label for labels in days.values() for label in labels]

        assert found["click"]["rows"] == found["click"]["known"] == len(frame)
        assert found["click"]["rate"] == pytest.approx(frame["click"].mean(), abs=1e-9)
        assert found["buy"]["rows"] == found["click"]["positives"] == frame["click"].sum()
        assert (found["buy"]["known"], found["buy"]["positives"]) == (len(buys), sum(buys))
        assert found["buy"]["days"] == [
            {"day": day, "known": len(labels), "rate": round(sum(labels) / len(labels), 9)}
            for day, labels in sorted(days.items())
        ]
        assert len(days) == 5


def test_frequent_values_are_named(report, prepared):
    words = Counter(prepared["train"]["word"].to_list())

    frequent = report["features"]["word"]["frequent"]

    del words[None]
    best = sorted(words, key=lambda word: (-words[word], word))
    assert [entry["value"] for entry in frequent] == best
    assert frequent[0]["share"] == pytest.approx(words[best[0]] / 14_000, abs=1e-9)
    bins = {entry["value"] for entry in report["features"]["size_bin"]["frequent"]}
    assert bins == {"≤ -1", "-1 to 0", "0 to 0.5", "0.5 to 2", "> 2"}
    buckets = report["features"]["campaign"]["frequent"]
    assert report["features"]["campaign"]["kind"] == "hashed"
    assert sum(entry["share"] for entry in buckets) == pytest.approx(1, abs=1e-6)


def test_tables_are_listed_by_size_and_priced_at_width_16(report, built):
    spec = FeatureSpec.load(built / "feature_spec.json")

    tables = report["vocabularies"]

    assert [t["codes"] for t in tables] == sorted((t.num_codes for t in spec.tables), reverse=True)
    word = next(table for table in tables if table["table"] == "word")
    assert (word["values"], word["unseen_codes"], word["rare_values"]) == (12, 3, 0)
    assert word["bytes_at_width_16"] == (12 + 3 + 2) * 64


def test_what_moved_or_teaches_nothing_is_warned_of(report):
    warned = {(warning["level"], warning["about"]) for warning in report["warnings"]}

    assert ("alarm", "feature size") in warned
    assert ("alarm", "feature word") in warned
    assert ("warning", "feature same") in warned
    assert any("coverage" in w["text"] for w in report["warnings"] if w["about"] == "feature size")
    assert any("outside" in w["text"] for w in report["warnings"] if w["about"] == "feature word")
    assert not any(about in ("feature tags", "feature campaign") for _, about in warned)
    assert report["features"]["same"]["constant"]
    assert sum(feature["constant"] for feature in report["features"].values()) == 1
    moved = next(entry for entry in report["drift"]["moved"] if entry["feature"] == "word")
    assert "unseen" in [one["value"] for one in moved["bins"][:2]]


def test_a_report_written_again_is_the_same(built, report, contents):
    spec = FeatureSpec.load(built / "feature_spec.json")
    before = contents(built)
    sizes = {split: report["splits"][split]["rows"] for split in SPLITS}
    counts = BuildCounts(dataset="shop <i>", rows_in=37_000, rows=sizes, time="at")

    assert write_report(built, spec, counts) == report
    assert contents(built) == before


def test_rows_that_went_nowhere_are_an_error():
    with pytest.raises(RuntimeError, match="10 rows came; 7 went out, 1 were dropped and 1 quar"):
        BuildCounts(
            dataset="x", rows_in=10, rows={"train": 7}, dropped={"gap": 1}, quarantined={"key": 1}
        )


def test_a_build_that_drifts_too_far_is_refused(build_features, dataset_of):
    def frame(shift: float, seed: int) -> pl.DataFrame:
        return rows(15_000, seed, shift).select("size", "click")

    feature = {"kind": "numeric", "name": "size", "column": "size"}
    value = dataset_of([feature], split={"by": "file", "valid_share": 0.3, "seed": 1})
    frames = {"train": frame(0, 1), "test": frame(1, 2)}

    with pytest.raises(DataError, match="'size', drift of test"):
        build_features(value, frames, max_drift=0.25)

    build_features(value, frames, max_drift=2.0)
