"""The gate lets pass what reproduces the checkpoint, and nothing else."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from export.fuzz import fuzzed_rows
from export.parity import awkward_frame, check_parity
from export.to_onnx import export_run
from recsys_moe.checkpoint import load_model
from recsys_moe.errors import ArtifactError
from recsys_moe.spec import FeatureSpec, Numeric


@pytest.fixture(scope="module")
def frame(spec: FeatureSpec, run: Path) -> pl.DataFrame:
    return awkward_frame(spec, run, pl.read_parquet(run / "sample.parquet"), rows=500)


def test_the_artifact_of_a_run_passes(artifact: Path, run: Path, frame: pl.DataFrame) -> None:
    model, spec = load_model(run)

    parity = check_parity(artifact, model, spec, run, frame, tolerance=1e-5)

    assert parity.largest_gap < 1e-6
    assert parity.rows == frame.height == 541


@pytest.mark.parametrize("change", [1e-3, float("nan")])
def test_other_weights_are_refused(
    change: float, artifact: Path, run: Path, frame: pl.DataFrame
) -> None:
    model, spec = load_model(run)
    with torch.no_grad():
        list(model.parameters())[-1].add_(change)

    with pytest.raises(ArtifactError, match=r"parity of p_\w+, row \d+"):
        check_parity(artifact, model, spec, run, frame, tolerance=1e-5)


def test_another_vocabulary_is_refused(artifact: Path, run: Path, frame: pl.DataFrame) -> None:
    model, spec = load_model(run)
    tables = [replace(t, vocabulary=None) if t.name == "tag" else t for t in spec.tables]

    with pytest.raises(ArtifactError, match="codes of feature 'tags', row"):
        check_parity(
            artifact, model, replace(spec, tables=tuple(tables)), run, frame, tolerance=1e-5
        )


def test_another_scale_is_refused(artifact: Path, run: Path, frame: pl.DataFrame) -> None:
    model, spec = load_model(run)
    features = tuple(
        replace(f, scale=f.scale * 1.001) if isinstance(f, Numeric) else f for f in spec.features
    )

    with pytest.raises(ArtifactError, match="number of feature 'price', row"):
        check_parity(artifact, model, replace(spec, features=features), run, frame, tolerance=1e-5)


def test_nothing_is_published_past_the_tolerance(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "artifact"

    with pytest.raises(ArtifactError, match="parity of"):
        export_run(run, output, tolerance=1e-12, overwrite=False)

    assert list(tmp_path.iterdir()) == []


def test_fuzzed_rows_are_the_same_each_time_and_odd(spec: FeatureSpec, run: Path) -> None:
    rows = fuzzed_rows(spec, run, pl.DataFrame(), 1000, seed=4)

    assert rows.equals(fuzzed_rows(spec, run, pl.DataFrame(), 1000, seed=4))
    assert rows["price"].is_infinite().any()
    assert rows["price"].is_nan().any()
    assert rows["price"].null_count() > 0
    assert rows["City of birth"].str.contains("\x00", literal=True).any()
    assert (rows["Age"] == -(2**63)).any()
    assert {0, 4, 5} <= set(rows["history"].list.len().drop_nulls())
