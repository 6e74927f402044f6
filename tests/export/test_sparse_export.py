"""A run whose gates choose experts, exported: which form the graph has, and what is refused."""

import shutil
from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from export.gates import check_graph
from export.graph import count_operators
from export.manifest import Manifest
from export.sparse import plan, with_form
from export.to_onnx import export_run
from recsys_moe import models
from recsys_moe.errors import ArtifactError, RequestError
from recsys_moe.moe.router_expert_choice import ExpertChoiceRouter
from recsys_moe.moe.router_soft_moe import SoftMoERouter
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
SWITCH = {
    "_target_": "recsys_moe.moe.router_top_k.TopKRouter",
    "_partial_": True,
    "k": 1,
    "renormalise": False,
}


def mmoe(spec: FeatureSpec, num_experts: int, router: object) -> nn.Module:
    torch.manual_seed(2)
    return models.mmoe(spec, **SIZES, num_experts=num_experts, router=router).eval()


def moe(spec: FeatureSpec, num_experts: int, router: object) -> nn.Module:
    sizes = {**SIZES, "num_experts": num_experts, "num_shared_experts": 0}
    return models.moe(spec, **sizes, router=router).eval()


def run_of(folder: Path, run: Path, spec: FeatureSpec, router: dict) -> Path:
    """Return a finished run like another, of an MMoE of six experts with this router."""
    shutil.copytree(run, folder)
    config = {"_target_": "recsys_moe.models.mmoe", **SIZES, "num_experts": 6, "router": router}
    cfg = OmegaConf.create({"model": {**config, "_partial_": True}})
    OmegaConf.save(cfg, folder / "config.yaml")
    kind = {key: value for key, value in router.items() if not key.startswith("_")}
    classes = {each.__name__: each for each in (TopKRouter, ExpertChoiceRouter)}
    model = mmoe(spec, 6, partial(classes[router["_target_"].rpartition(".")[2]], **kind))
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state}, folder / "best.ckpt")
    return folder


@pytest.fixture(scope="module")
def sparse_run(run: Path, spec: FeatureSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("sparse") / "run", run, spec, SWITCH)


@pytest.fixture(scope="module")
def sparse(sparse_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sparse") / "artifact"
    export_run(sparse_run, output, tolerance=1e-5, overwrite=False)
    return output


def test_few_chosen_experts_are_computed_on_their_rows_alone(sparse: Path) -> None:
    """Parity, batches of 0 to 257 rows and rows alone are what `export_run` itself refuses."""
    manifest = Manifest.verify(sparse)

    assert manifest.dispatch == "where"
    assert manifest.parity.largest_gap <= 1e-5
    assert count_operators(onnx.load(sparse / "core.onnx"))["NonZero"] == 6
    assert "NonZero" not in count_operators(onnx.load(sparse / "preprocess.onnx"))
    assert manifest.model["sizes"]["router"] == {"name": "TopKRouter", "k": 1, "renormalise": False}


def test_shapes_that_depend_on_values_are_refused_elsewhere(sparse: Path) -> None:
    for file in ("core.onnx", "model.onnx"):
        check_graph(sparse / file, is_core=file == "core.onnx", by_rows=True)
        with pytest.raises(ArtifactError, match="NonZero: a shape that depends on the values"):
            check_graph(sparse / file)


def test_the_same_run_and_form_is_the_same_artifact(sparse_run: Path, sparse: Path) -> None:
    digest = Manifest.load(sparse).digest
    for dispatch in ("auto", "where"):
        export_run(sparse_run, sparse, tolerance=1e-5, overwrite=False, dispatch=dispatch)
    with pytest.raises(RequestError, match="an artifact with another dispatch"):
        export_run(sparse_run, sparse, tolerance=1e-5, overwrite=False, dispatch="dense")
    assert Manifest.load(sparse).digest == digest


@pytest.mark.slow
def test_all_experts_on_every_row_is_a_choice_too(sparse_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "dense"
    manifest = export_run(sparse_run, output, tolerance=1e-5, overwrite=False, dispatch="dense")

    assert manifest.dispatch == "dense"
    assert "NonZero" not in count_operators(onnx.load(output / "core.onnx"))


def test_a_gate_of_all_experts_has_all_of_them_computed(artifact: Path) -> None:
    assert Manifest.load(artifact).dispatch == "dense"
    assert '"dispatch"' not in (artifact / "manifest.json").read_text()


TOP_2, UNION = partial(TopKRouter, k=2), partial(UnionBudgetRouter, shared=1, private=1)


@pytest.mark.parametrize(
    ("model", "experts", "router", "form", "gates"),
    [
        (mmoe, 12, TOP_2, "where", 3),
        (mmoe, 11, TOP_2, "dense", 3),  # three tasks of two experts each
        (moe, 4, TOP_2, "where", 1),
        (moe, 3, TOP_2, "dense", 1),
        (mmoe, 8, UNION, "where", 3),  # one for all and one for each of three
        (mmoe, 7, UNION, "dense", 3),
        (mmoe, 12, SoftmaxRouter, "dense", 0),
    ],
)
def test_half_of_the_experts_is_where_the_choice_changes(
    model: object, experts: int, router: object, form: str, gates: int, spec: FeatureSpec
) -> None:
    found = plan(model(spec, experts, router), spec, "auto")

    assert (found.form, found.gates) == (form, gates)
    assert plan(model(spec, experts, router), spec, "dense").form == "dense"


def test_every_layer_counts(spec: FeatureSpec) -> None:
    def ple(shared: int, router: object) -> nn.Module:
        sizes = {**SIZES, "num_task_experts": 2, "num_shared_experts": shared}
        return models.ple(spec, **sizes, num_levels=2, router=router).eval()

    assert plan(ple(10, TOP_2), spec, "auto").form == "where"  # level 0 has four gates of 16
    assert plan(ple(9, TOP_2), spec, "auto").form == "dense"
    assert plan(ple(10, TOP_2), spec, "auto").gates == 7


def test_models_without_gates_are_dense(spec: FeatureSpec) -> None:
    for model in (models.single_task(spec, **SIZES), models.shared_bottom(spec, **SIZES)):
        found = plan(model.eval(), spec, "auto")
        assert (found.form, found.gates) == ("dense", 0)


def test_only_the_copy_has_the_form(spec: FeatureSpec) -> None:
    model = mmoe(spec, 6, TOP_2)

    copy = with_form(model, "where")

    assert (model.mixture.dispatch, copy.mixture.dispatch) == ("auto", "where")
    for mine, theirs in zip(copy.parameters(), model.parameters(), strict=True):
        assert mine is theirs


@pytest.mark.parametrize(
    ("router", "dispatch", "message"),
    [
        (
            partial(ExpertChoiceRouter, capacity_factor=2.0),
            "auto",
            "experts, gate 'click': .* got ExpertChoiceRouter: expert choice ranks the rows",
        ),
        (
            partial(SoftMoERouter, slots_per_expert=2),
            "dense",
            "experts, gate 'click': .* got SoftMoERouter: soft MoE blends the rows",
        ),
        (SoftmaxRouter, "where", "none of whose gates chooses"),
        (TOP_2, "wher", "Did you mean 'where'"),
    ],
)
def test_what_a_graph_cannot_have_is_refused(
    router: object, dispatch: str, message: str, spec: FeatureSpec
) -> None:
    with pytest.raises(RequestError, match=message):
        plan(mmoe(spec, 6, router), spec, dispatch)


def test_a_refused_run_leaves_nothing(run: Path, spec: FeatureSpec, tmp_path: Path) -> None:
    router = {
        "_target_": "recsys_moe.moe.router_expert_choice.ExpertChoiceRouter",
        "_partial_": True,
        "capacity_factor": 2.0,
    }
    batchwise = run_of(tmp_path / "run", run, spec, router)

    with pytest.raises(RequestError, match="depend on the rows that it is scored with"):
        export_run(batchwise, tmp_path / "artifact", tolerance=1e-5, overwrite=False)

    assert [path.name for path in tmp_path.iterdir()] == ["run"]
