"""Laws of the funnel data set: from simulated logs to tensors, with the truth beside them."""

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

from pipelines import build
from recsys_moe.errors import RequestError
from recsys_moe.paths import CONF_DIR
from recsys_moe.spec import Bucketized, Categorical, FeatureSpec, Numeric

Contents = Callable[[Path], dict[str, bytes]]
ROWS = 30_000
FITTED = ("feature_spec.json", "vocab/", "prepared/train", "tensors/train")
OPTIONS: dict[str, Any] = {"max_quarantine_share": 0.0, "overwrite": False}


def funnel_value(**more: Any) -> dict[str, Any]:
    text = (CONF_DIR / "dataset" / "funnel.yaml").read_text()
    return {**yaml.safe_load(text), "rows": ROWS, **more}


@pytest.fixture(scope="module")
def funnel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("funnel") / "out"
    build.build(funnel_value(), folder=output, output=output, **OPTIONS)
    return output


def test_the_truth_lies_beside_the_rows_and_not_among_them(funnel: Path) -> None:
    truth = pl.read_parquet(funnel / "raw" / "truth")
    for split, rows in (("train", 24_000), ("valid", 3_000), ("test", 3_000)):
        prepared = pl.read_parquet(funnel / "prepared" / split)
        mine = pl.read_parquet(funnel / "truth" / f"{split}.parquet")
        assert len(mine) == len(prepared) == pytest.approx(rows, abs=2)
        assert mine["impression_id"].equals(prepared["impression_id"])
        assert mine.equals(truth[prepared["row_id"].to_list()])
        assert not any(name.startswith("p_") for name in prepared.columns)


def test_truth_follows_the_rows_where_a_split_scatters_them(tmp_path: Path) -> None:
    split = {"by": "hash", "column": "impression_id", "valid_share": 0.2, "test_share": 0.2}
    output = tmp_path / "out"
    build.build(funnel_value(split=split, rows=5_000), folder=tmp_path, output=output, **OPTIONS)

    for part in ("train", "valid", "test"):
        prepared = pl.read_parquet(output / "prepared" / part)
        truth = pl.read_parquet(output / "truth" / f"{part}.parquet")
        assert truth["impression_id"].equals(prepared["impression_id"])


def test_inputs_are_of_every_kind_and_never_labels_or_time(funnel: Path) -> None:
    spec = FeatureSpec.load(funnel / "feature_spec.json")
    columns = {column.name for column in spec.columns}

    assert not columns & {"impression_id", "ts", "click", "conversion"}
    assert not any(name.startswith("p_") for name in columns)
    assert {type(feature) for feature in spec.features} == {Categorical, Bucketized, Numeric}
    shared = [f.name for f in spec.code_features if f.table == "category"]
    assert shared == ["category", "query", "clicked_category"]
    assert {c.type for c in spec.columns if c.is_list} == {"string", "int64"}
    assert spec.table("campaign").vocabulary is None
    assert [(task.name, task.space) for task in spec.tasks] == [
        ("click", "all"),
        ("conversion", "click"),
    ]
    assert pl.read_parquet(funnel / "prepared" / "test").null_count().row(0)[-2:] == (0, 0)


def test_lists_keep_their_nulls_until_they_are_codes(funnel: Path) -> None:
    spec = FeatureSpec.load(funnel / "feature_spec.json")
    codes = np.load(funnel / "tensors" / "valid" / "codes.npy")
    prepared = pl.read_parquet(funnel / "prepared" / "valid")
    first = 0
    for feature in spec.code_features:
        slots = codes[:, first : first + feature.num_slots]
        first += feature.num_slots
        if isinstance(feature, Bucketized) or feature.max_len is None or feature.max_len > 3:
            continue
        table = spec.table(feature.table)
        vocabulary = pl.read_parquet(funnel / (table.vocabulary or ""))
        known = dict(vocabulary.select("value", "code").iter_rows())
        lists = prepared[feature.column].to_list()
        assert None in lists
        assert any(items and None in items for items in lists)
        for items, row in zip(lists, slots.tolist(), strict=True):
            wanted = [1 if item is None else known.get(item, 2) for item in items or []]
            assert row == wanted + [0] * (3 - len(wanted))


def test_labels_of_valid_and_test_reach_nothing_fitted(
    funnel: Path, tmp_path: Path, contents: Contents
) -> None:
    """Whom the clicks and conversions of the later windows belong to changes no fitted byte."""
    raw = tmp_path / "logs"
    later = [pl.read_parquet(funnel / "prepared" / split) for split in ("valid", "test")]
    ids = pl.concat(frame.select("impression_id") for frame in later)["impression_id"]
    (raw / "impressions").mkdir(parents=True)
    pl.read_parquet(funnel / "raw" / "impressions").write_parquet(raw / "impressions/all.parquet")
    swap = dict(zip(ids.to_list(), ids.shuffle(seed=1).to_list(), strict=True))
    source = {
        "format": "parquet",
        "until": "2026-01-15",
        **{log: log for log in ("impressions", "clicks", "conversions")},
    }
    value = {**funnel_value(), "source": source}
    for name in ("rows", "seed", "correlation"):
        del value[name]
    outputs = []
    for shuffled in (False, True):
        for log in ("clicks", "conversions"):
            rows = pl.read_parquet(funnel / "raw" / log)
            if shuffled:
                rows = rows.with_columns(pl.col("impression_id").replace(swap)).sample(
                    fraction=1, shuffle=True, seed=2
                )
            rows.write_parquet(raw / log / "all.parquet", mkdir=True)
        outputs.append(tmp_path / f"out{shuffled}")
        build.build(value, folder=raw, output=outputs[-1], **OPTIONS)

    read = [contents(output) for output in (funnel, *outputs)]
    for path in read[0]:
        if path.startswith(FITTED) or path.endswith("numbers.npy"):
            assert read[0][path] == read[1][path] == read[2][path], path
        if path.endswith(("valid/labels.npy", "test/labels.npy")):
            assert read[0][path] == read[1][path] != read[2][path]


@pytest.mark.parametrize("moment", ["raw/clicks", "raw/_SUCCESS", "prepared"])
def test_killed_and_run_again_gives_the_same_bytes(
    moment: str, funnel: Path, tmp_path: Path, contents: Contents
) -> None:
    cut = tmp_path / "cut"
    arguments = ["dataset=funnel", f"dataset.rows={ROWS}", "max_quarantine_share=0"]
    command = [sys.executable, "-m", "pipelines.build", *arguments, f"output={cut}"]
    root = Path(__file__).parents[2]
    killed = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL)
    while killed.poll() is None and not (cut / moment).exists():
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (cut / "_SUCCESS").exists()

    subprocess.run(
        command,
        cwd=root,
        stdout=subprocess.DEVNULL,
        check=True,
        env={**os.environ, "POLARS_MAX_THREADS": "1"},
    )

    wanted, got = contents(funnel), contents(cut)
    for requests in (wanted, got):
        request = json.loads(requests.pop("request.json"))
        assert request["simulator"] == 2
    assert wanted == got


def test_a_wrong_request_leaves_nothing_and_simulates_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out"
    for more, words in (
        ({"features": [{"kind": "categorical", "columns": ["ts"]}]}, "'ts'"),
        ({"features": [{"kind": "categorical", "columns": ["brnd"]}]}, "mean 'brand'"),
        ({"source": {"format": "simulated", "path": "x"}}, "source.path"),
        ({"rows": 0}, "rows: wanted a whole number"),
        ({"correlation": 2}, "correlation: wanted a number"),
    ):
        with pytest.raises(RequestError, match=words):
            build.build(funnel_value(**more), folder=tmp_path, output=output, **OPTIONS)
        assert not output.exists()
    with pytest.raises(RequestError, match="positives"):
        build.build(funnel_value(rows=20), folder=tmp_path, output=output, **OPTIONS)
    assert not any(output.iterdir())
