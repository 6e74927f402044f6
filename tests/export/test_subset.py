"""Some outputs of a run, exported without what only the others need."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from export.core import export_core
from export.fuzz import fuzzed_rows
from export.manifest import Manifest
from export.outputs import metrics_of
from export.score import Scorer
from export.sparse import with_form
from export.subset import restricted
from export.to_onnx import export_run
from recsys_moe import models
from recsys_moe.errors import RequestError
from recsys_moe.moe.accounts import account, tasks_of
from recsys_moe.moe.router_softmax import SoftmaxRouter
from recsys_moe.moe.router_top_k import TopKRouter
from recsys_moe.moe.router_union_budget import UnionBudgetRouter
from recsys_moe.spec import FeatureSpec

SIZES = {
    "embedding_dim": 4,
    "widths": [6, 5],
    "tower_widths": [4],
    "dropout": 0.1,
    "embedding_dropout": 0.1,
}
PLE = {"num_task_experts": 2, "num_shared_experts": 2}
TOP_2 = partial(TopKRouter, k=2)
ALL = ("click", "conversion", "like")
MODELS = {
    "single task": lambda spec: models.single_task(spec, **SIZES),
    "shared bottom": lambda spec: models.shared_bottom(spec, **SIZES),
    "mmoe": lambda spec: models.mmoe(spec, **SIZES, num_experts=3, router=SoftmaxRouter),
    "mmoe top 2": lambda spec: models.mmoe(spec, **SIZES, num_experts=4, router=TOP_2),
    "mmoe union": lambda spec: models.mmoe(
        spec, **SIZES, num_experts=8, router=partial(UnionBudgetRouter, shared=1, private=1)
    ),
    "moe": lambda spec: models.moe(
        spec, **SIZES, num_experts=8, num_shared_experts=1, router=TOP_2
    ),
    "moe union": lambda spec: models.moe(
        spec,
        **SIZES,
        num_experts=8,
        num_shared_experts=1,
        router=partial(UnionBudgetRouter, shared=1, private=1),
    ),
    "cgc": lambda spec: models.ple(spec, **SIZES, **PLE, num_levels=1, router=SoftmaxRouter),
    "ple": lambda spec: models.ple(spec, **SIZES, **PLE, num_levels=3, router=SoftmaxRouter),
    "ple top 2": lambda spec: models.ple(spec, **SIZES, **PLE, num_levels=2, router=TOP_2),
}


def build(name: str, spec: FeatureSpec) -> nn.Module:
    torch.manual_seed(11)
    return MODELS[name](spec).eval()


def rows(spec: FeatureSpec, count: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(count)
    codes = torch.randint(2, 3, (count, spec.num_slots), dtype=torch.int32)
    return codes, torch.randn(count, spec.num_numbers)


@pytest.mark.parametrize("form", ["dense", "where"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_left_computes_the_same(name: str, form: str, spec: FeatureSpec) -> None:
    model, x = build(name, spec), rows(spec, 17)
    whole = model(*x)

    for tasks in (("like",), ("click", "conversion")):
        part = with_form(restricted(model, tasks), form)
        logits = part(*x)
        assert tuple(logits) == tasks
        for task in tasks:
            torch.testing.assert_close(logits[task], whole[task], rtol=0, atol=1e-6)
            torch.testing.assert_close(part.routed(*x)[0][task], logits[task], rtol=0, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_all_tasks_are_the_model_itself(name: str, spec: FeatureSpec) -> None:
    model, x = build(name, spec), rows(spec, 5)
    whole = model(*x)

    for task, logit in restricted(model, ALL)(*x).items():
        torch.testing.assert_close(logit, whole[task], rtol=0, atol=0)


def weights_in(core: onnx.ModelProto) -> int:
    """Count the numbers of a graph that are neither whole nor a constant of one number."""
    return sum(
        int(np.prod(tensor.dims))
        for tensor in core.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and (np.prod(tensor.dims) > 1 or "::model." in tensor.name)
    )


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("mmoe top 2", ["p_click_and_conversion"]),
        pytest.param("ple top 2", ["p_like"], marks=pytest.mark.slow),
        pytest.param("mmoe", ["p_click"], marks=pytest.mark.slow),
        pytest.param("mmoe union", ["p_like"], marks=pytest.mark.slow),
        pytest.param("moe", ["p_like"], marks=pytest.mark.slow),
        pytest.param("single task", ["p_like"], marks=pytest.mark.slow),
        pytest.param("shared bottom", ["p_like"], marks=pytest.mark.slow),
        pytest.param("cgc", ["p_conversion"], marks=pytest.mark.slow),
        pytest.param("ple", ["p_click"], marks=pytest.mark.slow),
    ],
)
def test_the_graph_has_the_weights_that_its_outputs_need(
    name: str, outputs: list[str], spec: FeatureSpec, tmp_path: Path
) -> None:
    model, tasks = build(name, spec), tasks_of(spec, outputs)
    form = "where" if "top 2" in name else "dense"

    core = export_core(with_form(restricted(model, tasks), form), spec, tmp_path, outputs)

    assert weights_in(core) == account(model, tasks).parameters
    names = [output.name for output in core.graph.output]
    assert names == [*outputs, *(f"logit_{task}" for task in tasks)]


@pytest.fixture(scope="module")
def subset(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("subset") / "part"
    wanted = ["p_click_and_conversion", "p_click"]
    export_run(run, output, tolerance=1e-5, overwrite=False, outputs=wanted)
    return output


@pytest.fixture
def copied(subset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(subset, tmp_path / "part"))


def test_every_file_agrees_on_the_outputs(subset: Path, artifact: Path) -> None:
    manifest, names = Manifest.verify(subset), ("p_click", "p_click_and_conversion")
    whole = Manifest.load(artifact)

    assert manifest.outputs == names
    assert manifest.logits == ("logit_click", "logit_conversion")
    assert manifest.parameters < whole.parameters
    assert [record["outputs"] for record in manifest.accounts] == [
        ["p_click"],
        ["p_click_and_conversion"],
        list(names),
    ]
    response = json.loads((subset / "sample" / "response.json").read_text())
    assert [output["name"] for output in response["outputs"]] == list(names)
    expected = pl.read_parquet(subset / "sample" / "expected.parquet")
    assert [name for name in expected.columns if name.startswith("p_")] == list(names)
    triton = (subset / "triton" / "config.pbtxt").read_text()
    card = (subset / "MODEL_CARD.md").read_text()
    for text in (triton, card):
        assert "p_click_and_conversion" in text
        assert "like" not in text.replace("likely", "")
        assert "p_conversion" not in text
    weights = [folder.joinpath("weights.bin").stat().st_size for folder in (subset, artifact)]
    assert weights[0] < weights[1]


def test_a_job_scores_as_with_the_whole_artifact(
    subset: Path, artifact: Path, spec: FeatureSpec, run: Path
) -> None:
    frame = fuzzed_rows(spec, run, pl.DataFrame(), 64, seed=21)

    got = Scorer(subset).predict(frame)

    assert got.columns == ["p_click", "p_click_and_conversion"]
    wanted = Scorer(artifact).predict(frame).select(got.columns)
    np.testing.assert_allclose(got.to_numpy(), wanted.to_numpy(), rtol=0, atol=1e-6)
    with pytest.raises(RequestError, match="p_like"):
        Scorer(subset, outputs=["p_like"])


def test_other_outputs_make_another_artifact(run: Path, copied: Path) -> None:
    with pytest.raises(RequestError, match="an artifact with another outputs"):
        export_run(run, copied, tolerance=1e-5, overwrite=False, outputs=["p_click"])
    again = ["p_click", "p_click_and_conversion"]
    export_run(run, copied, tolerance=1e-5, overwrite=False, outputs=again)  # nothing to do


def test_an_artifact_from_before_costs_were_told_is_read(copied: Path) -> None:
    path = copied / "manifest.json"
    older = json.loads(path.read_text())
    assert older.pop("accounts")
    path.write_text(json.dumps(older, indent=2, ensure_ascii=False) + "\n")

    manifest = Manifest.verify(copied)

    assert (manifest.dispatch, manifest.accounts) == ("dense", ())


def test_metrics_are_those_of_the_outputs(subset: Path) -> None:
    tasks = {"click": {"auc": 0.7}, "click_and_conversion": {"auc": 0.8}, "stay": {"r2": 0.1}}
    evaluation = {"split": "test", "rows": 9, "tasks": tasks}

    found = metrics_of(evaluation, ["p_click_and_conversion", "y_stay"])

    assert found["rows"] == 9
    assert list(found["tasks"]) == ["click_and_conversion", "stay"]
    metrics = Manifest.load(subset).metrics
    assert metrics is not None
    assert list(metrics["tasks"]) == ["click"]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (["p_clik"], "Did you mean 'p_click'"),
        (["logit_click"], "wanted some of p_click"),
        (["p_like", "p_like"], "each name once"),
    ],
)
def test_wrong_outputs_are_refused(
    outputs: list[str], message: str, run: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        export_run(run, tmp_path / "a", tolerance=1e-5, overwrite=False, outputs=outputs)
    assert not list(tmp_path.iterdir())
