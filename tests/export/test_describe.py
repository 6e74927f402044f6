"""What an artifact says of itself to people and to Triton."""

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from export.card import model_card
from export.manifest import Manifest
from recsys_moe.checkpoint import load_model
from recsys_moe.moe.accounts import accounts
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


def test_the_card_says_what_each_output_costs(
    run: Path, artifact: Path, manifest: Manifest
) -> None:
    rows = accounts(load_model(run)[0])
    cost = (artifact / "MODEL_CARD.md").read_text().split("## Cost")[1].split("## ")[0]
    by_task = {row.tasks: row for row in rows}

    found = dict(re.findall(r"^\| `?([\w]+)`? \| ([\d,| ]+) \|$", cost, flags=re.MULTILINE))

    assert set(found) == {*manifest.outputs, "all"}
    for name, tasks in (("p_click", ("click",)), ("p_like", ("like",)), ("all", rows[-1].tasks)):
        row = by_task[tasks]
        figures = [int(cell.replace(",", "")) for cell in found[name].split(" | ")]
        assert figures == [
            row.parameters, row.active_parameters, row.flops_per_row, row.dense_flops_per_row,
        ]  # fmt: skip
    assert figures[0] == manifest.parameters


def test_a_card_of_some_outputs_is_silent_about_the_others(
    manifest: Manifest, spec: FeatureSpec
) -> None:
    card = model_card(replace(manifest, outputs=("p_like",), accounts=()), spec)

    assert "for 1 of 3 tasks" in card
    assert "`liked`" in card
    assert not any(name in card for name in ("p_conversion", "`clicked`", "`bought`"))


def test_frozen_experts_are_named_as_not_counted(manifest: Manifest, spec: FeatureSpec) -> None:
    record = {**manifest.accounts[0], "uncounted": ["mixture.bank.banks.1.0"]}

    card = model_card(replace(manifest, accounts=(record,), dispatch="where"), spec)

    assert "Not counted are the frozen experts mixture.bank.banks.1.0." in card
    assert f"{record['flops_per_row']:,} + frozen |" in card
    assert "each expert on the rows that chose it" in card
    assert "did not count it" in model_card(replace(manifest, accounts=()), spec)


def test_triton_gets_its_repository_from_the_artifact(artifact: Path, tmp_path: Path) -> None:
    subprocess.run(["sh", artifact / "triton" / "install.sh", tmp_path], check=True)

    place = tmp_path / "odd-mmoe"
    assert {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()} == {
        "config.pbtxt", "1/model.onnx", "1/weights.bin",
    }  # fmt: skip
    config = (place / "config.pbtxt").read_text()
    for name in ("user.id", "history_ids", "history_len", 'qu"ote', "p_click_and_conversion"):
        assert f"name: {json.dumps(name)}" in config
