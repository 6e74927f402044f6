"""The bundled data set: its rates, its inputs, its width."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipelines import build
from recsys_moe.paths import CONF_DIR
from recsys_moe.spec import FeatureSpec


@pytest.fixture(scope="module")
def census(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("census") / "out"
    path = CONF_DIR / "dataset" / "census_income.yaml"
    build.build(
        yaml.safe_load(path.read_text()),
        folder=path.parent,
        output=output,
        max_quarantine_share=0.0,
        overwrite=False,
    )
    return output


def test_rows_and_label_rates_are_those_published(census: Path) -> None:
    report: dict[str, Any] = json.loads((census / "report.json").read_text())
    splits = report["splits"]

    assert report["rows_in"] == 199_523 + 99_762
    assert splits["train"]["rows"] + splits["valid"]["rows"] == 199_523
    assert splits["valid"]["rows"] / 199_523 == pytest.approx(0.1, abs=0.003)
    assert splits["test"]["rows"] == 99_762
    for split in splits.values():
        assert split["tasks"]["income"]["rate"] == pytest.approx(0.062, abs=0.002)
        assert split["tasks"]["never_married"]["rate"] == pytest.approx(0.433, abs=0.006)
        assert all(feature["missing"] == 0 for feature in split["features"].values())


def test_neither_labels_nor_the_weight_are_inputs(census: Path) -> None:
    spec = FeatureSpec.load(census / "feature_spec.json")
    columns = {column.name for column in spec.columns}

    assert len(columns) == 39
    assert not columns & {"income_50k", "marital_stat", "instance_weight"}
    assert not any(f.column not in columns for f in spec.features)


def test_tensors_are_as_wide_as_the_spec_says(census: Path) -> None:
    spec = FeatureSpec.load(census / "feature_spec.json")
    codes = np.load(census / "tensors" / "train" / "codes.npy", mmap_mode="r")
    numbers = np.load(census / "tensors" / "train" / "numbers.npy")

    assert codes.shape == (spec.train_rows, spec.num_slots)
    assert (codes.max(axis=0) < [spec.table(f.table).num_codes for f in spec.code_features]).all()
    np.testing.assert_allclose(numbers.mean(axis=0), 0, atol=0.05)
