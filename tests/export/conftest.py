"""A finished run with every kind of feature, chained tasks and random weights, and its artifact."""

from pathlib import Path

import polars as pl
import pytest
import torch
from omegaconf import OmegaConf

from export.fuzz import fuzzed_rows
from export.to_onnx import export_run
from recsys_moe import models
from recsys_moe.files import write_json
from recsys_moe.spec import (
    Bucketized,
    Categorical,
    Column,
    Crossed,
    FeatureSpec,
    Numeric,
    Table,
    Task,
)

SIZES = {
    "embedding_dim": 8,
    "num_experts": 3,
    "widths": [16, 8],
    "tower_widths": [4],
    "dropout": 0.1,
    "embedding_dropout": 0.1,
}
VOCABULARIES = {
    "city": (["Ål", "a\x00b", "x y", "日本", "e\u0301", "é"], 1),
    "item": ([5, -7, 2**53 + 1, 0, 2**63 - 1, -(2**63) + 1], 3),
    "tag": (["a", "b", "é"], 4),
    "rare": ([], 2),
}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    spec = build_spec(folder)
    spec.save(folder / "feature_spec.json")
    torch.manual_seed(3)
    model = models.mmoe(spec, **SIZES)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state}, folder / "best.ckpt")
    cfg = {"model": {"_target_": "recsys_moe.models.mmoe", "_partial_": True, **SIZES}}
    OmegaConf.save(OmegaConf.create(cfg), folder / "config.yaml")
    sample = fuzzed_rows(spec, folder, pl.DataFrame(), 40, seed=5)
    sample.insert_column(0, pl.int_range(40, eager=True).alias("row_id"))
    sample.write_parquet(folder / "sample.parquet")
    write_json(
        folder / "evaluation.json",
        {
            "split": "test",
            "rows": 9,
            "tasks": {
                "click": {
                    "space": "all",
                    "rows": 9,
                    "positives": 4,
                    "auc": 0.75,
                    "log_loss": 0.5,
                    "ne": 0.9,
                    "calibration": 1.01,
                    "gauc": None,
                }
            },
        },
    )
    write_json(folder / "_SUCCESS", {})
    return folder


@pytest.fixture(scope="session")
def spec(run: Path) -> FeatureSpec:
    """The run's feature spec."""
    return FeatureSpec.load(run / "feature_spec.json")


@pytest.fixture(scope="session")
def artifact(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of the run; tests read it only."""
    output = tmp_path_factory.mktemp("artifacts") / "demo"
    export_run(run, output, tolerance=1e-5, overwrite=False)
    return output


def build_spec(folder: Path) -> FeatureSpec:
    """Write the vocabularies into a folder and return a spec with every kind of feature."""
    (folder / "vocab").mkdir()
    tables = [_fitted(folder, name, *rest) for name, rest in VOCABULARIES.items()]
    tables += [
        Table(name="hash", num_codes=2 + 11, num_oov=11),
        Table(name="one", num_codes=3, num_oov=1),
        Table(name="age", num_codes=2 + 4, num_oov=1),
        Table(name="flat", num_codes=3, num_oov=1),
        Table(name="cross", num_codes=2 + 97, num_oov=97),
    ]

    def numeric(name: str, column: str, f: str, center: float, scale: float, flag: bool, **more):
        return Numeric(
            name=name,
            column=column,
            transform=f,
            center=center,
            scale=scale,
            clip=8.0,
            missing_flag=flag,
            **more,
        )

    return FeatureSpec(
        dataset="odd",
        columns=(
            Column(name="user.id", type="int64"),
            Column(name="City of birth", type="string"),
            Column(name="item", type="int64"),
            Column(name="history", type="int64", is_list=True),
            Column(name="tags", type="string", is_list=True),
            Column(name="Age", type="int64"),
            Column(name="price", type="float32"),
            Column(name="ratio", type="float32"),
            Column(name='qu"ote', type="string"),
        ),
        tables=tuple(tables),
        features=(
            Categorical(name="user", column="user.id", table="hash"),
            Categorical(name="city", column="City of birth", table="city"),
            numeric("price", "price", "log1p", center=1.5, scale=0.7, flag=True),
            Categorical(name="history", column="history", table="item", max_len=4),
            Categorical(name="item", column="item", table="item"),
            Bucketized(name="age_bin", column="Age", table="age", edges=(0.1, 18.0, 30.0)),
            Categorical(name="tags", column="tags", table="tag", max_len=3),
            Categorical(name="tags_hashed", column="tags", table="hash", max_len=2),
            numeric("age", "Age", "identity", center=38.5, scale=0.07, flag=False),
            numeric("ratio", "ratio", "log1p", center=1e-12, scale=1e12, flag=True),
            Bucketized(name="price_bin", column="price", table="flat", edges=()),
            Bucketized(name="ratio_bin", column="ratio", table="age", edges=(-1.5, 0.0, 0.25)),
            Categorical(name="rare", column='qu"ote', table="rare"),
            Categorical(name="same", column='qu"ote', table="one"),
            Crossed(name="city_item", columns=("City of birth", "item"), table="cross"),
            Crossed(name="three", columns=("user.id", 'qu"ote', "City of birth"), table="cross"),
            Categorical(name="tags_last", column="tags", table="tag", max_len=2, keep="last"),
            Categorical(
                name="history_last", column="history", table="item", max_len=6, keep="last"
            ),
            numeric(
                "age_root", "Age", "sqrt", 5.0, 0.4, flag=True, low=1.0, high=900.0, fill=-0.75
            ),
            numeric("ratio_cut", "ratio", "identity", -1.0, 0.5, flag=False, low=-1.5, fill=0.25),
            Bucketized(
                name="price_inf", column="price", table="age", edges=(0.0, 2.5), allow_inf=True
            ),
        ),
        tasks=(
            Task(name="click", label="clicked"),
            Task(name="conversion", label="bought", space="click"),
            Task(name="like", label="liked"),
        ),
        user="user.id",
        train_rows=1000,
        train_window=(1_700_000_000_000_000, 1_700_086_400_000_000),
    )


def _fitted(folder: Path, name: str, values: list, num_oov: int) -> Table:
    dtype = pl.Int64 if values and isinstance(values[0], int) else pl.String
    first, path = 2 + num_oov, f"vocab/{name}.parquet"
    pl.DataFrame(
        {
            "value": pl.Series(values, dtype=dtype),
            "count": pl.Series(range(len(values), 0, -1), dtype=pl.Int64),
            "code": pl.Series(range(first, first + len(values)), dtype=pl.Int64),
        }
    ).write_parquet(folder / path)
    return Table(name=name, num_codes=first + len(values), num_oov=num_oov, vocabulary=path)
