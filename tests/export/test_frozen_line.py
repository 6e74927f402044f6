"""From fitted trees to an artifact, by the commands: the example and the export of its run."""

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from export.to_onnx import export_run
from recsys_moe.checkpoint import load_model
from recsys_moe.moe.banks_frozen import FrozenBank
from tests.conftest import MakeFeatures

ROOT = Path(__file__).parents[2]
SMALL = ["max_epochs=1", "model.embedding_dim=2", "model.num_experts=2", "model.widths=[8,4]"]


@pytest.mark.slow
def test_the_example_trains_trees_beside_networks_and_the_artifact_has_both(
    make_features: MakeFeatures, tmp_path: Path
) -> None:
    features = make_features(rows=1500)
    command = [sys.executable, str(ROOT / "examples" / "tree_experts.py"), str(features)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path), *SMALL], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

    model, spec = load_model(tmp_path / "run")
    names = [bank.name for bank in model.modules() if isinstance(bank, FrozenBank)]
    assert names == ["lightgbm_click", "lightgbm_conversion"]

    export_run(tmp_path / "run", tmp_path / "artifact", tolerance=1e-5, overwrite=False)

    graph = onnx.load(tmp_path / "artifact" / "model.onnx", load_external_data=False).graph
    trees = [node for node in graph.node if node.op_type == "TreeEnsembleClassifier"]
    assert len(trees) == len(spec.tasks)
