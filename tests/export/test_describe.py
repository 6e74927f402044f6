"""What an artifact says of itself to people and to Triton."""

import json
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from export.card import model_card
from export.manifest import Manifest
from recsys_moe.spec import FeatureSpec


@pytest.fixture(scope="module")
def manifest(artifact: Path) -> Manifest:
    return Manifest.load(artifact)


def test_the_card_has_a_head_and_every_name(artifact: Path, spec: FeatureSpec) -> None:
    card = (artifact / "MODEL_CARD.md").read_text()
    _, head, text = card.split("---\n", maxsplit=2)

    results = OmegaConf.create(head)["model-index"][0]["results"][0]
    assert results["metrics"][0] == {"type": "auc", "name": "click auc", "value": 0.75}
    for column in spec.columns:
        assert f"`{column.name}`" in text
    assert "P(conversion given click)" in text
    assert "0.75000" in text


def test_a_run_that_was_not_evaluated_says_so(manifest: Manifest, spec: FeatureSpec) -> None:
    values = {name: getattr(manifest, name) for name in manifest.__dataclass_fields__}

    card = model_card(Manifest(**(values | {"metrics": None})), spec)

    assert "had not been evaluated" in card
    assert "model-index" not in card


def test_triton_gets_its_repository_from_the_artifact(artifact: Path, tmp_path: Path) -> None:
    subprocess.run(["sh", artifact / "triton" / "install.sh", tmp_path], check=True)

    place = tmp_path / "odd-mmoe"
    assert {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()} == {
        "config.pbtxt", "1/model.onnx", "1/weights.bin",
    }  # fmt: skip
    config = (place / "config.pbtxt").read_text()
    for name in ("user.id", "history_ids", "history_len", 'qu"ote', "p_click_and_conversion"):
        assert f"name: {json.dumps(name)}" in config
