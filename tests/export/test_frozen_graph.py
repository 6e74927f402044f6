"""Frozen experts inside an exported graph: standard operators, the same values, any batch."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.core import export_core
from export.frozen import inline_experts
from export.gates import check_graph
from export.graph import count_operators, open_graph
from recsys_moe.errors import ArtifactError
from recsys_moe.frozen.expert_file import ExpertFile
from recsys_moe.frozen.freeze import freeze, freeze_rule
from recsys_moe.moe.banks import MLPBank
from recsys_moe.moe.banks_frozen import FrozenBank
from recsys_moe.moe.banks_hetero import HeteroBank
from recsys_moe.moe.router_softmax import SoftmaxRouter
from recsys_moe.moe.router_top_k import TopKRouter
from recsys_moe.moe.sources import Source, mix_sources
from tests.moe.frozen_cases import FEATURES, FRESH, TRAIN, build_spec, fitted

SPEC = build_spec()
PLACES = [slice(0, 1), slice(4, 5), slice(5, 8)]
KINDS = (
    "logistic regression",
    "random forest",
    "support vectors",
    "neighbours",
    "naive Bayes",
    "XGBoost of three",
    "LightGBM with categories",
    "Gaussian process",
)


class Mixed(nn.Module):
    """Two gates over two networks, frozen experts of every kind, and the last of them again."""

    def __init__(self, experts: list[ExpertFile], rule: ExpertFile, *, how: str) -> None:
        super().__init__()
        frozen = [FrozenBank(expert) for expert in (*experts, experts[-1])]
        features = [*[PLACES] * len(frozen), [slice(4, 5), slice(0, 1), slice(5, 8)], [slice(5, 7)]]
        banks = [MLPBank(2, 5, [8, 4]), *frozen, FrozenBank(rule)]
        self.bank = HeteroBank(banks, input_width=8, features=features)
        size = self.bank.num_experts
        self.gates = nn.ModuleList(
            SoftmaxRouter(8, size) if how == "dense" else TopKRouter(8, size, 3) for _ in range(2)
        )
        self.how, self.logit = how, nn.Linear(8, 1)

    def forward(self, codes: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        x = torch.cat([codes.float(), numbers], dim=1)
        routings = [gate(x) for gate in self.gates]
        mixed = mix_sources([Source(self.bank, x)], routings, [[0], [0]], how=self.how)
        return {"click": self.logit(torch.cat(mixed, dim=1)).squeeze(1)}


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[ExpertFile], ExpertFile]:
    folder = tmp_path_factory.mktemp("experts")
    made = [
        freeze(fitted(kind), SPEC, FEATURES, folder / "expert.onnx", rows=TRAIN, name=kind)
        for kind in KINDS
    ]
    return made, freeze_rule(SPEC, "price", folder / "rule.onnx", rows=TRAIN[:, 2:4])


@pytest.mark.parametrize(("how", "first"), [("dense", 0), ("where", 6)])
def test_the_graph_holds_the_experts_and_scores_each_row_alone(
    how: str, first: int, experts: tuple[list[ExpertFile], ExpertFile], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Mixed(experts[0][first:], experts[1], how=how).eval()
    codes = np.zeros((len(FRESH), SPEC.num_slots), np.int32)
    codes[:, 0], codes[:, 4] = FRESH[:, 0], FRESH[:, 1]  # between them the slots of a list
    numbers = FRESH[:, 2:]
    with torch.no_grad():
        want = torch.sigmoid(model(torch.from_numpy(codes), torch.from_numpy(numbers))["click"])

    core = export_core(model, SPEC, tmp_path)

    path = tmp_path / "core.onnx"
    check_graph(path, is_core=True, by_rows=how == "where")
    counts = count_operators(core)
    assert {"TreeEnsembleClassifier", "CDist"} <= counts.keys()
    large = [t for t in core.graph.initializer if list(t.dims) == [400, 5]]
    assert counts["CDist"] - len(large) == 1  # of the expert that is there twice, constants once
    session = open_graph(path)

    def scored(rows: slice) -> NDArray[np.float32]:
        (p_click,) = session.run(["p_click"], {"codes": codes[rows], "numbers": numbers[rows]})
        return p_click

    for rows in (slice(0, 0), slice(0, 1), slice(0, 3), slice(None)):
        np.testing.assert_allclose(scored(rows), want[rows], rtol=0, atol=1e-5)
    alone = np.concatenate([scored(slice(row, row + 1)) for row in range(20)])
    np.testing.assert_allclose(alone, scored(slice(None))[:20], rtol=0, atol=1e-6)


def test_a_node_of_an_unknown_expert_is_refused(
    experts: tuple[list[ExpertFile], ExpertFile],
) -> None:
    node = onnx.helper.make_node("Expert", ["x"], ["y"], domain="recsys_moe.frozen", digest="ab")
    core = onnx.helper.make_model(onnx.helper.make_graph([node], "core", [], []))
    with pytest.raises(ArtifactError, match="frozen expert: wanted one of the model, got ab"):
        inline_experts(core, FrozenBank(experts[1]))
