"""A toy shop: features folders with any vocabulary, runs trained on them, models started anew."""

import sys
import zlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from recsys_moe import train
from recsys_moe.files import finish, sha256_file, write_json
from recsys_moe.paths import CONF_DIR
from recsys_moe.spec import (
    Bucketized,
    Categorical,
    Column,
    Feature,
    FeatureSpec,
    Numeric,
    Table,
    Task,
)
from recsys_moe.warm_start import WarmStart, warm_start

SMALL = {"embedding_dim": 3, "widths": [6, 5], "tower_widths": [4]}
CLICK = Task(name="click", label="click")
BUY = Task(name="bu.y", label="buy", space="click")


class Toy:
    """What the tests do with the shop; `run` trains each architecture once, on `old`."""

    items = ("pear", "fig", "apple", "plum", "grün")
    shops = (70, -3, 2**60)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.old = self.features(folder / "old")

    def draw(self, rows: int, seed: int) -> pl.DataFrame:
        rng = np.random.default_rng(seed)
        return pl.DataFrame(
            {
                "item": rng.choice([*self.items, "never seen"], rows),
                "shop": rng.choice(self.shops, rows),
                "tags": [list(rng.integers(0, 40, rng.integers(0, 4))) for _ in range(rows)],
                "price": rng.normal(size=rows).astype(np.float32),
                **{task: rng.integers(0, 2, rows) for task in ("click", "bu.y", "share")},
            },
            schema_overrides={"tags": pl.List(pl.Int64)},
        )

    def features(
        self,
        folder: Path,
        *,
        items: Sequence[str] = items,
        shops: Sequence[int] = shops,
        num_oov: int = 2,
        num_buckets: int = 10,
        edges: tuple[float, ...] = (-1.0, 0.0, 1.0),
        center: float = 0.0,
        tasks: tuple[Task, ...] = (CLICK, BUY),
        more: tuple[Feature, ...] = (),
        tables: Sequence[str] = ("item", "shop", "tag", "price_bin"),
    ) -> Path:
        """Write a finished features folder of random rows, encoded with these vocabularies."""
        listed = [
            _listed(folder, name, values, num_oov)
            for name, values in (("item", items), ("shop", shops))
        ]
        every = {
            **{table.name: table for table in listed},
            "tag": Table(name="tag", num_codes=2 + num_buckets, num_oov=num_buckets),
            "price_bin": Table(name="price_bin", num_codes=3 + len(edges), num_oov=0),
        }
        FeatureSpec(
            dataset="toy",
            columns=(
                Column(name="item", type="string"),
                Column(name="shop", type="int64"),
                Column(name="tags", type="int64", is_list=True),
                Column(name="price", type="float32"),
            ),
            tables=tuple(every[name] for name in tables),
            features=(
                Categorical(name="item", column="item", table="item"),
                Categorical(name="shop", column="shop", table="shop"),
                Categorical(name="tags", column="tags", table="tag", max_len=3),
                Bucketized(name="price_bin", column="price", table="price_bin", edges=edges),
                self.number("price", center),
                *more,
            ),
            tasks=tasks,
            train_rows=300,
        ).save(folder / "feature_spec.json")
        for split, seed in (("train", 1), ("valid", 2)):
            self._write_split(folder, split, self.draw(300, seed))
        write_json(folder / "request.json", {"folder": str(folder)})
        finish(folder, {})
        return folder

    @staticmethod
    def number(name: str, center: float = 0.0) -> Numeric:
        return Numeric(
            name=name,
            column="price",
            transform="identity",
            center=center,
            scale=1.0,
            clip=8.0,
            missing_flag=False,
        )

    def _write_split(self, folder: Path, split: str, rows: pl.DataFrame) -> None:
        for kind in ("tensors", "prepared"):
            (folder / kind / split).mkdir(parents=True)
        spec = FeatureSpec.load(folder / "feature_spec.json")
        codes_BS, numbers_BK = encode(folder, rows)
        labels = rows.select(spec.task_names).to_numpy().astype(np.float32)
        for name, array in (
            ("codes", codes_BS.numpy()),
            ("numbers", numbers_BK.numpy()),
            ("labels", labels),
            ("known", np.ones_like(labels)),
        ):
            np.save(folder / "tensors" / split / f"{name}.npy", array)
        rows.write_parquet(folder / "prepared" / split / "part-00000.parquet")

    def run(self, model: str) -> Path:
        done = self.folder / "runs" / model
        return done if done.exists() else self.train(self.old, done, model)

    def train(self, features: Path, output: Path, model: str, *arguments: str, **more: Any) -> Path:
        values = [f"model.{key}={value}" for key, value in settings(model, **more).items()]
        places = [f"features={features}", f"output={output}", f"model={model}"]
        short = ["batch_size=64", "max_epochs=1"]
        sys.argv = ["recsys-moe-train", *places, *values, *short, *arguments]
        train.main()
        return output

    def start(
        self, run: Path, features: Path, model: str, **more: Any
    ) -> tuple[torch.nn.Module, torch.nn.Module, WarmStart]:
        """Return a model started from a run, the same model before, and what became of it."""
        file = OmegaConf.load(CONF_DIR / "model" / f"{model}.yaml")
        plain = OmegaConf.to_container(file, resolve=False)
        own = {name: value for name, value in plain.items() if name not in ("experts", "router")}
        given = {**own, **settings(model, **more)}
        build = instantiate(OmegaConf.create(given), _convert_="all")
        spec = FeatureSpec.load(features / "feature_spec.json")
        torch.manual_seed(99)
        warm = build(spec)
        torch.manual_seed(99)
        fresh = build(spec)
        found = warm_start(warm, build, spec, features, run)
        return warm.eval(), fresh.eval(), found

    def logits(
        self, model: torch.nn.Module, features: Path, rows: pl.DataFrame
    ) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = model(*encode(features, rows))
        return {task: logits_B.numpy() for task, logits_B in found.items()}


def _listed(folder: Path, name: str, values: Sequence[Any], num_oov: int) -> Table:
    first, last = 2 + num_oov, 2 + num_oov + len(values)
    codes = pl.int_range(first, last, eager=True)
    path = folder / "vocab" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"value": values, "count": [1] * len(values), "code": codes}).write_parquet(path)
    return Table(
        name=name,
        num_codes=last,
        num_oov=num_oov,
        vocabulary=f"vocab/{name}.parquet",
        sha256=sha256_file(path),
    )


def encode(folder: Path, rows: pl.DataFrame) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode rows by dictionaries, with CRC-32 where the product has its own hash."""
    spec = FeatureSpec.load(folder / "feature_spec.json")
    columns = []
    for feature in spec.code_features:
        table = spec.table(feature.table)
        if isinstance(feature, Bucketized):
            columns.append([[2 + sum(x > e for e in feature.edges)] for x in rows["price"]])
            continue
        known: dict[Any, int] = {}
        if table.vocabulary:
            known = dict(pl.read_parquet(folder / table.vocabulary)["value", "code"].rows())
        codes = []
        for cell in rows[feature.columns[0]].to_list():
            values = cell if isinstance(cell, list) else [cell]
            found = [known.get(x, 2 + zlib.crc32(str(x).encode()) % table.num_oov) for x in values]
            codes.append(found + [0] * (feature.num_slots - len(found)))
        columns.append(codes)
    codes_BS = torch.tensor([list(chain(*parts)) for parts in zip(*columns, strict=True)])
    numbers = [rows["price"].to_numpy() - feature.center for feature in spec.numeric_features]
    return codes_BS.int(), torch.from_numpy(np.stack(numbers, axis=1)).float()


def settings(model: str, **more: Any) -> dict[str, Any]:
    return {**SMALL, **({"num_levels": 2} if model == "ple" else {}), **more}


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """Return the shop, whose trained runs all tests share."""
    return Toy(tmp_path_factory.mktemp("toy"))
