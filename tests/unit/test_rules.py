"""Rules of the project that no linter has."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = [
    path
    for package in ("recsys_moe", "pipelines", "export", "tests", "benchmarks")
    for path in sorted((ROOT / package).rglob("*.py"))
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_holds_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("recsys_moe", ("numpy", "polars", "torch", "hydra")),
        ("recsys_moe.spec", ("numpy", "polars", "torch", "hydra")),
        ("export.score", ("torch", "onnx", "pytorch_lightning", "sklearn")),
        ("export.manifest", ("torch", "onnx", "pytorch_lightning")),
        ("pipelines.build", ("torch", "onnx", "pytorch_lightning", "onnxruntime")),
    ],
)
def test_importing_it_loads_nothing_heavier(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*set({absent!r}) & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.decode().split() == []


def test_one_place_runs_plans_so_that_each_can_be_watched() -> None:
    running = re.compile(r"\.(collect|collect_batches|collect_async|fetch|sink_\w+)\(")
    paths = [path for path in (ROOT / "pipelines").rglob("*.py") if path.name != "plans.py"]
    assert [path.name for path in paths if running.search(path.read_text())] == []


def test_every_requirement_is_pinned_to_a_version_it_allows() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[re.sub(r"[-_.]+", "-", name).lower()] = Version(version)
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name != "recsys-moe":
            assert pins[name] in requirement.specifier, name


def test_scoring_needs_no_training_package() -> None:
    serve = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["serve"]
    assert not {Requirement(text).name for text in serve} & {"torch", "onnx", "pytorch-lightning"}
