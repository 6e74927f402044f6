"""Fixtures for all tests: a small features folder on disk, as the features command writes it."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import polars_hash  # noqa: F401 (registers nchash)
import pytest

from recsys_moe.files import finish, sha256_file, write_json
from recsys_moe.spec import Bucketized, Categorical, Column, FeatureSpec, Numeric, Table, Task

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

COLORS = ["red", "green", "blue", "grün", "gr\u00fcn\u0000"]
EDGES = (-1.0, 0.0, 1.0)
MakeFeatures = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_command_leaves_its_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take back what a command run in this process tells Hydra through the environment."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0"))


@pytest.fixture(scope="session")
def make_features(tmp_path_factory: pytest.TempPathFactory) -> MakeFeatures:
    """Return a function that writes a features folder with codes, a list, numbers and a chain."""

    def make(rows: int = 600, seed: int = 0) -> Path:
        folder = tmp_path_factory.mktemp("features")
        rng = np.random.default_rng(seed)
        (folder / "vocab").mkdir()
        vocabulary = folder / "vocab" / "color.parquet"
        pl.DataFrame(
            {"value": COLORS, "count": [9, 5, 4, 2, 1], "code": [3, 4, 5, 6, 7]}
        ).write_parquet(vocabulary)
        spec = FeatureSpec(
            dataset="toy",
            columns=(
                Column(name="color", type="string"),
                Column(name="tags", type="int64", is_list=True),
                Column(name="price", type="float32"),
            ),
            tables=(
                Table(
                    name="color",
                    num_codes=8,
                    num_oov=1,
                    vocabulary="vocab/color.parquet",
                    sha256=sha256_file(vocabulary),
                ),
                Table(name="tags", num_codes=12, num_oov=10),
                Table(name="price_bin", num_codes=2 + len(EDGES) + 1, num_oov=0),
            ),
            features=(
                Categorical(name="color", column="color", table="color"),
                Categorical(name="tags", column="tags", table="tags", max_len=3),
                Bucketized(name="price_bin", column="price", table="price_bin", edges=EDGES),
                Numeric(
                    name="price",
                    column="price",
                    transform="identity",
                    center=0.0,
                    scale=1.0,
                    clip=8.0,
                    missing_flag=True,
                ),
            ),
            tasks=(
                Task(name="click", label="click"),
                Task(name="conversion", label="conversion", space="click"),
            ),
            user="user_id",
            train_rows=rows,
        )
        spec.save(folder / "feature_spec.json")
        for split, size in (("train", rows), ("valid", rows // 2), ("test", rows // 2)):
            _write_split(folder, split, size, rng)
        write_json(folder / "request.json", {"rows": rows, "seed": seed})
        finish(folder, {"rows": rows})
        return folder

    return make


def _write_split(folder: Path, split: str, rows: int, rng: np.random.Generator) -> None:
    tensors, prepared = folder / "tensors" / split, folder / "prepared" / split
    tensors.mkdir(parents=True)
    prepared.mkdir(parents=True)
    color = rng.integers(0, len(COLORS), rows)
    price = rng.normal(size=rows).astype(np.float32)
    lengths = rng.integers(0, 4, rows)
    tags = np.where(np.arange(3) < lengths[:, None], rng.integers(2, 12, (rows, 3)), 0)
    chance = 1 / (1 + np.exp(-(price + (color == 1) - 0.5)))
    click = rng.random(rows) < chance
    conversion = click & (rng.random(rows) < 1 / (1 + np.exp(-(price - (color == 2)))))
    tag_codes = np.where(tags > 0, np.asarray([0, 0, *map(_hashed, range(2, 12))])[tags], 0)
    bins = 2 + np.searchsorted(np.asarray(EDGES), price, side="left")
    users = rng.integers(0, 20, rows)
    np.save(tensors / "codes.npy", np.c_[color + 3, tag_codes, bins].astype(np.int32))
    np.save(tensors / "numbers.npy", np.c_[price, np.zeros(rows)].astype(np.float32))
    np.save(tensors / "labels.npy", np.c_[click, conversion].astype(np.float32))
    np.save(tensors / "known.npy", np.c_[np.ones(rows), click].astype(np.float32))
    np.save(tensors / "users.npy", users.astype(np.int64))
    pl.DataFrame(
        {
            "row_id": np.arange(rows),
            "user_id": users,
            "color": [COLORS[i] for i in color],
            "tags": pl.Series([list(row[row > 0]) for row in tags], dtype=pl.List(pl.Int64)),
            "price": price,
            "click": click.astype(np.int64),
            "conversion": pl.Series(conversion.astype(np.int64)).set(~pl.Series(click), None),
        }
    ).write_parquet(prepared / "part-00000.parquet")


def _hashed(value: int) -> int:
    """Return the code of a value in the toy table of ten hash buckets."""
    hashes = pl.Series([str(value)]).to_frame("v").select(pl.col("v").nchash.murmur32())  # type: ignore[attr-defined]
    return 2 + int(hashes.item()) % 10
