"""Laws of the features command: types, labels, quarantine, repetition, crashes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from recsys_moe.errors import DataError, RequestError

Build = Callable[..., Path]
Frame = Callable[..., pl.DataFrame]
FEATURES = [
    {"kind": "categorical", "columns": ["item", "place"], "num_oov": 2},
    {"kind": "numeric", "name": "price_scaled", "column": "price", "missing_flag": True},
    {"kind": "bucketized", "name": "price_bin", "column": "price", "edges": [1, 2]},
]
FITTED = ("feature_spec.json", "vocab", "prepared/train", "tensors/train")


def prepared(out: Path, split: str) -> pl.DataFrame:
    return pl.read_parquet(out / "prepared" / split)


def test_csv_is_parquet(
    build_features: Build,
    dataset_of: Any,
    contents: Callable[[Path], dict[str, bytes]],
    frame: Frame,
) -> None:
    frames = {"train": frame(300, 1), "test": frame(99, 2)}
    frames = {name: rows.drop("at") for name, rows in frames.items()}
    value = dataset_of(FEATURES, user="user", row_weight="weight")
    first = build_features(value, frames)
    source = {"format": "csv", "train": "train.csv", "test": ["t*.csv"]}
    value = {**value, "source": {**source, "test": "test*.csv", "types": {"item": "string"}}}
    second = build_features(value, {f"{name}.csv": rows for name, rows in frames.items()})

    for name in ("prepared", "tensors", "vocab"):
        assert contents(first / name) == contents(second / name)
    assert (first / "feature_spec.json").read_bytes() == (second / "feature_spec.json").read_bytes()


def test_a_null_label_is_unknown_and_never_a_negative(
    build_features: Build, dataset_of: Any, frame: Frame
) -> None:
    tasks = [
        {"name": "click", "label": "click"},
        {"name": "sale", "label": {"column": "bought", "positive": 1}, "space": "click"},
    ]
    train = frame(400, 1)
    out = build_features(dataset_of(FEATURES, tasks=tasks), {"train": train, "test": frame(99, 2)})

    mine = train[prepared(out, "train")["row_id"].to_list()]
    labels = np.load(out / "tensors/train/labels.npy")
    known = np.load(out / "tensors/train/known.npy")
    assert known[:, 1].tolist() == mine["bought"].is_not_null().cast(int).to_list()
    assert labels[:, 1].tolist() == mine["bought"].fill_null(0).to_list()
    assert prepared(out, "train")["sale"].to_list() == mine["bought"].to_list()
    report = json.loads((out / "report.json").read_text())["splits"]["train"]["tasks"]["sale"]
    clicked = mine.filter(pl.col("click") == 1)["bought"].drop_nulls()
    assert (report["known"], report["positives"]) == (len(clicked), clicked.sum())


def test_rows_in_are_rows_out_and_rows_in_quarantine(
    build_features: Build, dataset_of: Any, frame: Frame
) -> None:
    train = frame(400, 1).with_columns(
        item=pl.when(pl.int_range(pl.len()) < 3).then(pl.lit("")).otherwise("item"),
        click=pl.when(pl.int_range(pl.len()).is_in([5, 6])).then(2).otherwise("click"),
        weight=pl.when(pl.int_range(pl.len()) == 9).then(float("nan")).otherwise("weight"),
    )
    value = dataset_of(FEATURES, keys=["item"], row_weight="weight")
    frames = {"train": train, "test": frame(99, 2)}

    out = build_features(value, frames, max_quarantine_share=0.05)

    report = json.loads((out / "report.json").read_text())
    bad = pl.read_parquet(out / "quarantine")
    assert bad["row_id"].to_list() == [0, 1, 2, 5, 6, 9]
    assert bad.drop("row_id", "reason").equals(train[[0, 1, 2, 5, 6, 9]], null_equal=True)
    assert report["quarantine"] == {
        "key item: missing": 3,
        "label of click: not 0 or 1": 2,
        "row weight weight: not a finite number from 0 up": 1,
    }
    assert report["rows_in"] == 499 == report["rows_out"] + 6
    with pytest.raises(DataError, match="3 of them with 'key item: missing'"):
        build_features(value, frames, max_quarantine_share=0.001)


def test_types_become_the_three_of_the_contract(
    build_features: Build, dataset_of: Any, frame: Frame
) -> None:
    rows = frame(300, 1).with_columns(
        day=pl.col("at").dt.date(),
        local=pl.col("at").dt.convert_time_zone("Asia/Tokyo"),
        naive=pl.col("at").dt.replace_time_zone(None).dt.cast_time_unit("ms"),
        yes=pl.col("click") == 1,
        cost=pl.col("price").cast(pl.Decimal(20, 3)),
        kind=pl.col("item").cast(pl.Categorical),
        small=pl.col("place").cast(pl.UInt8),
    )
    columns = ["day", "local", "naive", "yes", "kind", "small"]
    features = [
        {"kind": "categorical", "columns": columns},
        {"kind": "bucketized", "name": "cost_bin", "column": "cost", "edges": [0]},
    ]
    out = build_features(dataset_of(features), {"train": rows, "test": rows})

    kept = prepared(out, "test")
    assert kept.select([*columns[:4], "small"]).dtypes == [pl.Int64] * 5
    assert kept.schema["kind"] == pl.String
    assert kept.schema["cost"] == pl.Float32
    micros = [int(moment.timestamp()) * 10**6 for moment in rows["at"]]
    assert kept["local"].to_list() == kept["naive"].to_list() == micros
    assert kept["day"].to_list() == [m - m % (86_400 * 10**6) for m in micros]


def test_running_again_does_nothing_and_another_request_is_refused(
    command: Any,
    dataset_of: Any,
    tmp_path: Path,
    contents: Callable[[Path], dict[str, bytes]],
    frame: Frame,
) -> None:
    for name in ("train", "test"):
        frame(300, 1).write_parquet(tmp_path / "conf" / f"{name}.parquet", mkdir=True)
    source = {"format": "parquet", "train": "../train.parquet", "test": "../test.parquet"}
    value = dataset_of(FEATURES, source=source)
    assert command(dataset=value) == (0, "")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}

    started = time.monotonic()
    assert command(dataset=value) == (0, "")

    assert time.monotonic() - started < 2
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    code, error = command("dataset.split.seed=9", dataset=value)
    assert code == 2
    assert "another dataset.split.seed" in error
    before = contents(tmp_path / "out" / "prepared")
    assert command("dataset.split.seed=9", "overwrite=true", dataset=value)[0] == 0
    assert contents(tmp_path / "out" / "prepared") != before


def test_killed_and_run_again_gives_the_same_bytes_on_any_threads(
    dataset_of: Any, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]], frame: Frame
) -> None:
    folder = tmp_path / "conf" / "dataset"
    folder.mkdir(parents=True)
    for name, rows in (("train", 150_000), ("test", 30_000)):
        frame(rows, 1).write_parquet(folder / f"{name}.parquet")
    (folder / "toy.yaml").write_text(yaml.safe_dump(dataset_of(FEATURES, user="user")))

    def start(output: str, threads: int) -> subprocess.Popen[bytes]:
        arguments = ["--config-dir", str(folder.parent), "dataset=toy", f"output={output}"]
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.build", *arguments],
            env={**os.environ, "POLARS_MAX_THREADS": str(threads)},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.DEVNULL,
        )

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(str(whole), 2).wait() == 0
    killed = start(str(cut), 2)
    while killed.poll() is None and not (cut / "tensors").exists():
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (cut / "_SUCCESS").exists()

    assert start(str(cut), 1).wait() == 0

    assert contents(whole) == contents(cut)


def test_text_dates_of_csv_are_utc(build_features: Build, dataset_of: Any, frame: Frame) -> None:
    rows = frame(200, 1)
    forms = ["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S+00:00"]
    features = [{"kind": "categorical", "columns": ["at"]}]
    source = {"format": "csv", "train": "rows.csv", "test": "rows.csv"}
    value = dataset_of(features, source={**source, "types": {"at": "datetime"}})
    for form in forms:
        text = rows.with_columns(pl.col("at").dt.strftime(form))
        out = build_features(value, {"rows.csv": text})
        micros = [int(moment.timestamp()) * 10**6 for moment in rows["at"]]
        assert prepared(out, "test")["at"].to_list() == micros


def test_an_empty_source_is_refused(build_features: Build, dataset_of: Any, frame: Frame) -> None:
    none = frame(300, 1).head(0)
    with pytest.raises(RequestError, match="wanted rows"):
        build_features(dataset_of(FEATURES), {"train": none, "test": none})
