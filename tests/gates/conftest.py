"""Fixtures of the gate report: runs made by hand, and the planted task as a features folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from recsys_moe.files import finish
from recsys_moe.moe.balance_losses import BalanceLosses
from recsys_moe.spec import Column, FeatureSpec, Numeric, Table, Task

WIDTH, CLUSTERS, ROWS, STEPS = 8, 4, 8192, 250
SMALL = {"embedding_dim": 2, "widths": [16], "tower_widths": [], "dropout": 0.0}
SMALL |= {"embedding_dropout": 0.0, "_partial_": True}
SaveRun = Callable[..., Path]


@pytest.fixture(scope="session")
def save_run(tmp_path_factory: pytest.TempPathFactory) -> SaveRun:
    """Return a function that writes a run folder around the weights that `learn` leaves."""

    def save(
        features: Path, model: dict[str, Any], learn: Callable[[nn.Module], None] | None = None
    ) -> Path:
        run = tmp_path_factory.mktemp("run")
        spec_file = run / "feature_spec.json"
        spec_file.write_bytes((features / "feature_spec.json").read_bytes())
        config = OmegaConf.create({"model": SMALL | model})
        OmegaConf.save(config, run / "config.yaml")
        torch.manual_seed(0)
        built = instantiate(config.model, _convert_="all")(FeatureSpec.load(spec_file))
        if learn is not None:
            learn(built)
        weights = {f"model.{name}": value for name, value in built.state_dict().items()}
        torch.save({"state_dict": weights}, run / "best.ckpt")
        finish(run, {})
        return run

    return save


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return features around four centres, each with its own law for the label.

    `cluster` is in the prepared rows alone: no model sees it.
    """
    folder = tmp_path_factory.mktemp("planted")
    names = [f"x{n}" for n in range(WIDTH)]
    spec = FeatureSpec(
        dataset="planted",
        columns=tuple(Column(name=name, type="float32") for name in names),
        tables=(Table(name="unused", num_codes=3, num_oov=1),),
        features=tuple(
            Numeric(
                name=name,
                column=name,
                transform="identity",
                center=0.0,
                scale=1.0,
                clip=100.0,
                missing_flag=False,
            )
            for name in names
        ),
        tasks=(Task(name="click", label="click"),),
        train_rows=ROWS,
    )
    spec.save(folder / "feature_spec.json")
    truth = np.random.default_rng(99)
    centres = 3 * truth.standard_normal((CLUSTERS, WIDTH))
    laws = 1.5 * truth.standard_normal((CLUSTERS, WIDTH))
    for seed, split in enumerate(("train", "test")):
        rng = np.random.default_rng(seed)
        cluster, z = rng.integers(CLUSTERS, size=ROWS), rng.standard_normal((ROWS, WIDTH))
        x = (centres[cluster] + z).astype(np.float32)
        click = rng.random(ROWS) < 1 / (1 + np.exp(-(laws[cluster] * z).sum(1)))
        tensors, prepared = folder / "tensors" / split, folder / "prepared" / split
        tensors.mkdir(parents=True)
        prepared.mkdir(parents=True)
        np.save(tensors / "codes.npy", np.empty((ROWS, 0), np.int32))
        np.save(tensors / "numbers.npy", x)
        np.save(tensors / "labels.npy", click[:, None].astype(np.float32))
        np.save(tensors / "known.npy", np.ones((ROWS, 1), np.float32))
        frame = pl.DataFrame({"row_id": np.arange(ROWS), **dict(zip(names, x.T, strict=True))})
        frame = frame.with_columns(
            cluster=pl.Series([f"cluster {c}" for c in cluster]), click=pl.Series(click).cast(int)
        )
        frame[:5000].write_parquet(prepared / "part-00000.parquet")
        frame[5000:].write_parquet(prepared / "part-00001.parquet")
    finish(folder, {})
    return folder


@pytest.fixture(scope="session")
def learn_planted(planted: Path) -> Callable[[nn.Module], None]:
    """Return a function that trains a model on the planted task, with the Switch loss."""
    x_ND = torch.from_numpy(np.load(planted / "tensors" / "train" / "numbers.npy"))
    label_N = torch.from_numpy(np.load(planted / "tensors" / "train" / "labels.npy")[:, 0])

    def learn(model: nn.Module) -> None:
        balance = BalanceLosses(switch=0.1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(STEPS):
            rows = torch.randint(ROWS, (512,))
            codes = torch.empty(512, 0, dtype=torch.int32)
            logits, gated = model.routed(codes, x_ND[rows])  # type: ignore[operator]
            loss = F.binary_cross_entropy_with_logits(logits["click"], label_N[rows])
            loss = loss + sum(balance([g.routing for g in gated]).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return learn
