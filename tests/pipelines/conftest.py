"""Fixtures: a dataset on disk from frames and roles, and the features built from it."""

import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from pipelines import build, plans

Value = dict[str, Any]
TASKS = [{"name": "click", "label": "click"}]


def dataset_value(features: list[Value], **more: Any) -> Value:
    """The values of a dataset file over train.parquet and test.parquet."""
    value: Value = {
        "name": "toy",
        "source": {"format": "parquet", "train": "train.parquet", "test": "test.parquet"},
        "split": {"by": "file", "valid_share": 0.3, "seed": 1},
        "tasks": TASKS,
        "features": features,
    }
    return {**value, **more}


@pytest.fixture(autouse=True)
def no_plan_holds_all_rows() -> Iterator[None]:
    """Refuse every plan of every build that falls back to memory or holds a whole column."""

    def check(plan: pl.LazyFrame) -> None:
        held = [node for node in plans.in_memory_nodes(plan) if node not in plans.ALLOWED]
        assert not held, f"{held} in {plan.explain()}"

    with plans.watched(check):
        yield


@pytest.fixture
def dataset_of() -> Callable[..., Value]:
    return dataset_value


@pytest.fixture
def build_features(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes frames as parquet files and builds features from them."""
    made = []

    def make(value: Value, frames: Mapping[str, pl.DataFrame], **more: Any) -> Path:
        folder = tmp_path / f"set{len(made)}"
        folder.mkdir()
        made.append(folder)
        for name, frame in frames.items():
            if name.endswith(".csv"):
                frame.write_csv(folder / name)
            else:
                frame.write_parquet(folder / f"{name}.parquet", row_group_size=97)
        options = {"max_quarantine_share": 0.01, "overwrite": False, **more}
        build.build(value, folder=folder, output=folder / "out", **options)
        return folder / "out"

    return make


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Return a function that runs the console command; it returns exit code and stderr."""

    def run(*arguments: str, dataset: Value | str | None = None) -> tuple[int, str]:
        conf = tmp_path / "conf" / "dataset"
        conf.mkdir(parents=True, exist_ok=True)
        if dataset is not None:
            text = dataset if isinstance(dataset, str) else yaml.safe_dump(dataset)
            (conf / "toy.yaml").write_text(text)
            arguments = ("dataset=toy", f"output={tmp_path / 'out'}", *arguments)
        program = ["recsys-moe-features", "--config-dir", str(conf.parent), *arguments]
        monkeypatch.setattr(sys, "argv", program)
        code = 0
        try:
            build.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capfd.readouterr().err

    return run


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Return a function that reads all files below a folder."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read


def shop_frame(rows: int, seed: int, **replaced: Any) -> pl.DataFrame:
    """Rows of every type, with a key, a user, a time, labels and a weight."""
    draw = np.random.default_rng(seed)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    columns = {
        "item": [f"i{n}" for n in draw.zipf(1.5, rows) % 50],
        "place": pl.Series(draw.integers(0, 9, rows), dtype=pl.Int16),
        "price": draw.normal(size=rows).round(3) * 3,
        "user": draw.integers(0, 40, rows),
        "fold": draw.choice(["a", "b", "c"], rows),
        "at": [start + timedelta(seconds=int(s)) for s in draw.integers(0, 10**6, rows)],
        "click": draw.integers(0, 2, rows),
        "bought": [None if x < 0.3 else int(x > 0.6) for x in draw.random(rows)],
        "weight": draw.random(rows),
    }
    return pl.DataFrame(columns).with_columns(**replaced)


@pytest.fixture
def frame() -> Callable[..., pl.DataFrame]:
    """Return a function that draws rows of every type from a seed."""
    return shop_frame
