"""The built wheel: what it carries, and that it scores with nothing but its `serve` extra."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT))
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_the_configuration_and_the_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    assert "recsys_moe/conf/dataset/census_income.yaml" in names
    assert "recsys_moe/data/census_income/train.parquet" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "recsys_moe",
        "pipelines",
        "export",
    }


def test_the_serve_extra_alone_scores_an_artifact(
    wheel: Path, make_features: Callable[..., Path], tmp_path: Path
) -> None:
    features, run, artifact = make_features(rows=400), tmp_path / "run", tmp_path / "artifact"
    _module("recsys_moe.train", f"features={features}", f"output={run}", "max_epochs=1")
    _module("export.to_onnx", f"run={run}", f"output={artifact}")
    environment = tmp_path / "venv"
    _run(sys.executable, "-m", "venv", str(environment))
    pins = str(ROOT / "constraints.txt")
    _run(str(environment / "bin/pip"), "install", "-q", f"{wheel}[serve]", "-c", pins)

    _run(
        str(environment / "bin/recsys-moe-score"),
        f"artifact={artifact}",
        f"input={features / 'prepared' / 'test'}",
        f"output={tmp_path / 'predictions'}",
    )
    _run(
        str(environment / "bin/recsys-moe-features"),
        "dataset=census_income",
        f"output={tmp_path / 'census'}",
    )

    success = json.loads((tmp_path / "predictions" / "_SUCCESS.json").read_text())
    assert success["rows_scored"] == success["rows_in"] == 200
    python = str(environment / "bin/python")
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 1
    assert subprocess.run([python, "-c", "import onnx"], capture_output=True).returncode == 1


def _module(name: str, *arguments: str) -> None:
    _run(sys.executable, "-m", name, *arguments)


def _run(*words: str) -> None:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
