"""The graph and the features command agree on every row of both data sets."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest

from export.columns import raw_feeds
from export.graph import open_graph
from export.preprocess import preprocess_model
from recsys_moe.spec import FeatureSpec


@pytest.mark.parametrize("dataset", [["census_income"], ["funnel", "dataset.rows=20000"]])
def test_prepared_rows_become_the_tensors(dataset: list[str], tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    subprocess.run(
        [sys.executable, "-m", "pipelines.build", f"dataset={dataset[0]}", *dataset[1:],
         "output=features"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": root}, check=True, capture_output=True,
    )  # fmt: skip
    folder = tmp_path / "features"
    spec = FeatureSpec.load(folder / "feature_spec.json")
    onnx.save(preprocess_model(spec, folder), tmp_path / "preprocess.onnx")
    session = open_graph(tmp_path / "preprocess.onnx")
    for split in ("valid", "test"):
        rows = pl.read_parquet(folder / "prepared" / split / "*.parquet")

        codes, numbers = session.run(["codes", "numbers"], raw_feeds(rows, spec.columns))

        tensors = folder / "tensors" / split
        np.testing.assert_array_equal(codes, np.load(tensors / "codes.npy"))
        np.testing.assert_allclose(numbers, np.load(tensors / "numbers.npy"), rtol=0, atol=1e-6)
