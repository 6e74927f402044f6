"""Four planted clusters: the report finds which expert serves which, and what it is worth."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys_moe.gate_report.report import write_report

TOP_K = {"_target_": "recsys_moe.moe.router_top_k.TopKRouter", "_partial_": True}
MMOE = "recsys_moe.models.mmoe"


@pytest.fixture(scope="module")
def reported(
    planted: Path, save_run: Callable[..., Path], learn_planted: Callable[..., None]
) -> Callable[[int, int], dict[str, Any]]:
    known: dict[tuple[int, int], dict[str, Any]] = {}

    def report(num_experts: int, k: int) -> dict[str, Any]:
        if (num_experts, k) not in known:
            router = {**TOP_K, "k": k, "renormalise": k > 1}
            model = {"_target_": MMOE, "num_experts": num_experts, "router": router}
            run = save_run(planted, model, learn_planted)
            write_report(run, planted, "test", ["cluster"], ablation_rows=4000)
            known[num_experts, k] = json.loads((run / "gates.json").read_text())
        return known[num_experts, k]

    return report


def cluster_gates(report: dict[str, Any]) -> dict[str, Any]:
    return report["layers"][0]["columns"]["cluster"]["gates"]["click"]


def test_one_expert_a_cluster_is_found(reported: Callable[..., dict[str, Any]]) -> None:
    report = reported(4, 1)

    assert cluster_gates(report)["agreement"] >= 0.9
    assert min(cluster_gates(report)["eta_squared"]) >= 0.9


def test_two_of_eight_experts_a_row_are_mapped_to_their_clusters(
    reported: Callable[..., dict[str, Any]],
) -> None:
    assert cluster_gates(reported(8, 2))["agreement_joined"] >= 0.9


def test_an_expert_is_said_to_serve_its_cluster(reported: Callable[..., dict[str, Any]]) -> None:
    layer = reported(4, 1)["layers"][0]
    first = [columns[0] for columns in layer["serves"]["click"]]

    assert {column["column"] for column in first} == {"cluster"}
    served = [column["segments"][0] for column in first]
    assert {segment["segment"] for segment in served} == {f"cluster {c}" for c in range(4)}
    assert all(3 < segment["lift"] < 5 for segment in served)


def test_without_its_expert_a_cluster_is_hurt_and_no_other(
    reported: Callable[..., dict[str, Any]],
) -> None:
    report = reported(4, 1)
    columns = report["layers"][0]["serves"]["click"]
    for expert, run in enumerate(report["ablation"]["layers"]["experts"]):
        own = columns[expert][0]["segments"][0]["segment"]
        changes = {s: found["click"]["loss"] for s, found in run["segments"]["cluster"].items()}
        mine = changes.pop(own)
        assert mine > 0.1
        assert max(map(abs, changes.values())) < mine / 20
        assert run["outputs"]["click"]["auc"] < -0.01
        assert run["outputs"]["click"]["log_loss"] == pytest.approx(
            (mine + sum(changes.values())) / 4, rel=0.2
        )


def test_each_gate_gives_all_its_weight_away(reported: Callable[..., dict[str, Any]]) -> None:
    layer = reported(8, 2)["layers"][0]
    weights = layer["gate_weights"]["click"]

    assert sum(weights["mean"]) == pytest.approx(1, abs=1e-5)
    assert sum(reported(4, 1)["layers"][0]["gate_weights"]["click"]["share"]) == pytest.approx(1)
    assert sum(weights["used"]) == pytest.approx(2, abs=1e-5)
    assert sum(weights["largest"]) == pytest.approx(1, abs=1e-5)
    assert layer["health"]["active_per_row"] == pytest.approx(2, abs=1e-5)
    for means in layer["columns"]["cluster"]["gates"]["click"]["mean"]:
        assert sum(means) == pytest.approx(1, abs=1e-5)
