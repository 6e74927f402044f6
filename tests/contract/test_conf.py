"""One set of laws over everything in conf/: a new YAML is covered when it is added."""

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from omegaconf import OmegaConf

from export import to_onnx
from export.score import Scorer
from recsys_moe import evaluate, train
from recsys_moe.checkpoint import check_targets, load_model
from recsys_moe.datamodule import Split
from recsys_moe.paths import CONF_DIR
from recsys_moe.predict import predict_split
from recsys_moe.predictions import probabilities

ROOT = Path(__file__).parents[2]
MODELS = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml"))
OPTIMIZERS = sorted(path.stem for path in (CONF_DIR / "optimizer").glob("*.yaml"))
LOSSES = sorted(path.stem for path in (CONF_DIR / "loss").glob("*.yaml"))
COMMANDS = sorted(path.stem for path in CONF_DIR.glob("*.yaml"))
SMALL = ["batch_size=128", "max_epochs=1", "model.tower_widths=[4]", "model.embedding_dim=3"]


@pytest.fixture(scope="module")
def features(make_features: Callable[..., Path]) -> Path:
    return make_features(rows=400)


def run(module: object, *arguments: str) -> None:
    sys.argv = ["command", *arguments]
    module.main()  # type: ignore[attr-defined]


CHOICES = [
    *([f"model={model}"] for model in MODELS),
    *(["model=shared_bottom", f"loss={loss}"] for loss in LOSSES),
    *(["model=shared_bottom", f"optimizer={optimizer}"] for optimizer in OPTIMIZERS),
]


@pytest.mark.parametrize("choice", CHOICES, ids=",".join)
def test_it_trains_a_step_exports_and_scores_as_the_checkpoint_does(
    choice: list[str], features: Path, tmp_path: Path
) -> None:
    folder, artifact = tmp_path / "run", tmp_path / "artifact"
    run(train, f"features={features}", f"output={folder}", *choice, *SMALL)
    run(evaluate, f"run={folder}", f"features={features}")
    run(to_onnx, f"run={folder}", f"output={artifact}")

    trained, spec = load_model(folder)
    expected = probabilities(
        spec, predict_split(trained, Split(features, "test", spec), batch_rows=64)[0]
    )
    rows = pl.read_parquet(features / "prepared" / "test" / "*.parquet")
    found = Scorer(artifact).predict(rows)
    assert found.columns == [f"p_{name}" for name, _ in spec.outputs()]
    for name, p in expected.items():
        np.testing.assert_allclose(found[f"p_{name}"].to_numpy(), p, rtol=0, atol=1e-5)
    assert (found["p_click_and_conversion"] <= found["p_click"]).all()


def test_every_command_has_its_config_its_script_and_its_make_target() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    makefile = (ROOT / "Makefile").read_text()

    assert sorted(name.removeprefix("recsys-moe-") for name in scripts) == COMMANDS
    for command in COMMANDS:
        assert f"\n{command}: " in makefile


@pytest.mark.parametrize("path", sorted(CONF_DIR.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_a_yaml_names_no_target_outside_the_allowed_packages(path: Path) -> None:
    whole = {"experts": None, "router": None, path.parent.name: OmegaConf.load(path)}
    check_targets(OmegaConf.create(whole))
