"""Runs to operate on, and features with one more task or one more value than theirs."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from export import to_onnx
from recsys_moe import train
from recsys_moe.checkpoint import load_model
from recsys_moe.datamodule import Split
from recsys_moe.files import sha256_file, write_json
from recsys_moe.spec import FeatureSpec

SIZES = ["model.widths=[16,8]", "model.tower_widths=[16]", "model.embedding_dim=3"]
SHORT = ["batch_size=64", "max_epochs=1"]
MODELS = {
    "mmoe": ["model=mmoe", "model.num_experts=4"],
    "mmoe top_k": ["model=mmoe", "model.num_experts=4", "router=top_k"],
    "mmoe sigmoid": ["model=mmoe", "model.num_experts=4", "router=sigmoid"],
    "moe top_p": ["model=moe", "router=top_p", "experts=mixed", "model.num_experts=5"],
    "ple 2": ["model=ple", "model.num_levels=2"],
    "ple 2 top_k": ["model=ple", "model.num_levels=2", "router=top_k"],
    "shared_bottom": ["model=shared_bottom"],
    "single_task": ["model=single_task"],
}


class Theatre:
    """What the tests do with the command."""

    def __init__(self, folder: Path, features: Path) -> None:
        self.folder, self.features = folder, features

    def run(self, model: str) -> Path:
        """Return a run of a kind of model, trained once for all tests."""
        output = self.folder / model.replace(" ", "_")
        if not output.exists():
            command(f"features={self.features}", f"output={output}", *MODELS[model], *SIZES, *SHORT)
        return output

    def cut(
        self, run: Path, output: Path, kind: str, *arguments: str, features: Path | None = None
    ) -> Path:
        """Operate on a run, and train what is to be trained."""
        places = [f"features={features or self.features}", f"output={output}", f"init_from={run}"]
        command(*places, f"surgery={kind}", *SHORT, *arguments)
        return output

    def logits(self, run: Path, features: Path | None = None) -> dict[str, Tensor]:
        """Return the logits of all test rows."""
        model, spec = load_model(run)
        batch = Split(features or self.features, "test", spec).batch(slice(None))
        with torch.no_grad():
            found: dict[str, Tensor] = model(batch.codes, batch.numbers)
        return found

    def with_task(self, folder: Path, *, first: bool) -> Path:
        """Return the features with a task more, `like`."""
        shutil.copytree(self.features, folder)
        spec = FeatureSpec.load(folder / "feature_spec.json").to_dict()
        spec["tasks"] = list(spec["tasks"])
        place = 0 if first else len(spec["tasks"])
        spec["tasks"].insert(place, {"name": "like", "label": "like", "space": "all"})
        FeatureSpec.from_dict(spec).save(folder / "feature_spec.json")
        for split in ("train", "valid", "test"):
            tensors = folder / "tensors" / split
            price = np.load(tensors / "numbers.npy")[:, 0]
            for name, column in (("labels", price > 0), ("known", price == price)):
                before = np.load(tensors / f"{name}.npy")
                after = np.insert(before, place, column.astype(np.float32), axis=1)
                np.save(tensors / f"{name}.npy", after)
            path = folder / "prepared" / split / "part-00000.parquet"
            like = pl.Series("like", (price > 0).astype(np.int64))
            pl.read_parquet(path).with_columns(like).write_parquet(path)
        write_json(folder / "request.json", {"with": "like", "first": first})
        return folder

    def grown(self, folder: Path, color: str) -> Path:
        """Return the features with a color more, in every fifth row."""
        shutil.copytree(self.features, folder)
        path = folder / "vocab" / "color.parquet"
        old = pl.read_parquet(path)
        code = old["code"].max() + 1  # type: ignore[operator]
        new = pl.DataFrame({"value": [color], "count": [1], "code": [code]}, schema=old.schema)
        pl.concat([old, new]).write_parquet(path)
        spec = FeatureSpec.load(folder / "feature_spec.json").to_dict()
        spec["tables"] = [
            {**table, "num_codes": code + 1, "sha256": sha256_file(path)}
            if table["name"] == "color"
            else table
            for table in spec["tables"]
        ]
        FeatureSpec.from_dict(spec).save(folder / "feature_spec.json")
        for split in ("train", "valid", "test"):
            codes = np.load(folder / "tensors" / split / "codes.npy")
            codes[::5, 0] = code
            np.save(folder / "tensors" / split / "codes.npy", codes)
            rows = pl.read_parquet(folder / "prepared" / split / "part-00000.parquet")
            is_new = pl.int_range(pl.len()) % 5 == 0
            rows = rows.with_columns(
                color=pl.when(is_new).then(pl.lit(color)).otherwise(pl.col("color"))
            )
            rows.write_parquet(folder / "prepared" / split / "part-00000.parquet")
        write_json(folder / "request.json", {"with": color})
        return folder


def command(*arguments: str) -> None:
    sys.argv = ["recsys-moe-train", *arguments]
    train.main()


def export(run: Path, output: Path) -> Path:
    sys.argv = ["recsys-moe-export", f"run={run}", f"output={output}"]
    to_onnx.main()
    return output


def weights(run: Path, file: str = "best.ckpt") -> dict[str, Tensor]:
    """Return a checkpoint's tensors, those of a pool's first bank under the pool's name."""
    state = torch.load(run / file, weights_only=True)["state_dict"]
    return {name.replace("bank.banks.0.", "bank."): value for name, value in state.items()}


def refused(capsys: Any, act: Callable[[], Any]) -> str:
    """Return the one line with which a command is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        act()
    assert stopped.value.code == 2
    line: str = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


@pytest.fixture(scope="session")
def theatre(
    tmp_path_factory: pytest.TempPathFactory, make_features: Callable[..., Path]
) -> Theatre:
    return Theatre(tmp_path_factory.mktemp("theatre"), make_features(rows=400))
