"""A model, new days, grown features, the model started again: old rows score as they did."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from export import to_onnx
from export.score import Scorer
from pipelines.build import build
from recsys_moe import train

DATASET: dict[str, Any] = {
    "name": "shop",
    "source": {"format": "parquet", "train": "train.parquet", "test": "test.parquet"},
    "split": {"by": "file", "valid_share": 0.3, "seed": 1},
    "tasks": [{"name": "click", "label": "click"}],
    "features": [
        {"kind": "categorical", "name": "item", "column": "item", "num_oov": 2},
        {"kind": "categorical", "name": "seen", "column": "seen", "table": "item", "num_oov": 2}
        | {"max_len": 3},
        {"kind": "numeric", "name": "price", "column": "price"},
    ],
}


def rows(seed: int, first_item: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    items = first_item + rng.zipf(1.4, (400, 4)) % 30
    return pl.DataFrame(
        {
            "item": [f"i{n}" for n in items[:, 0]],
            "seen": [[f"i{n}" for n in row[1 : 1 + row[0] % 4]] for row in items],
            "price": rng.normal(first_item, 2, 400),
            "click": rng.integers(0, 2, 400),
        }
    )


def run(module: Any, *arguments: str) -> None:
    sys.argv = ["command", *arguments]
    module.main()


def line(folder: Path, *, seed: int, first_item: int, old: Path | None) -> Path:
    """Go from a window of logs to an artifact, as a continuation of an old line if there is one."""
    folder.mkdir()
    rows(seed, first_item).write_parquet(folder / "train.parquet")
    rows(seed + 50, first_item).write_parquet(folder / "test.parquet")
    features, trained = folder / "features", folder / "run"
    start = []
    if old is not None:
        start = [f"init_from={old / 'run'}", "optimizer.lr=0", "optimizer.table_lr=0"]
    grow_from = None if old is None else old / "features"
    build(DATASET, folder=folder, output=features, grow_from=grow_from)
    places = [f"features={features}", f"output={trained}"]
    run(train, *places, "batch_size=64", "max_epochs=1", *start)
    run(to_onnx, f"run={trained}", f"output={folder / 'artifact'}")
    return folder


def items_of(folder: Path) -> pl.Series:
    return pl.read_parquet(folder / "features" / "vocab" / "item.parquet")["value"]


def test_rows_of_old_values_score_as_before(tmp_path: Path) -> None:
    one = line(tmp_path / "one", seed=1, first_item=0, old=None)
    two = line(tmp_path / "two", seed=2, first_item=15, old=one)

    before, after = items_of(one), items_of(two)
    known = pl.all_horizontal(
        pl.col("item").is_in(before.implode()),
        pl.col("seen").list.eval(pl.element().is_in(before.implode())).list.all(),
    )
    old_rows = rows(seed=9, first_item=0).drop("click").filter(known)
    first, second = (
        Scorer(folder / "artifact").predict(old_rows)["p_click"].to_numpy() for folder in (one, two)
    )
    np.testing.assert_allclose(second, first, rtol=0, atol=1e-6)
    assert len(old_rows) > 100
    assert first.std() > 1e-3
    assert after.head(len(before)).equals(before)
    assert len(after) > len(before)
