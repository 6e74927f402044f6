"""Experts added to a trained model: nothing moves until they open, then only they do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys_moe.checkpoint import load_model
from tests.surgery.conftest import SIZES, command, refused, weights

GATED = ["mmoe", "mmoe sigmoid", "moe top_p", "ple 2", "ple 2 top_k"]


@pytest.mark.parametrize("model", GATED)
def test_closed_experts_change_no_bit_and_open_ones_train_alone(
    model: str, theatre: Any, tmp_path: Path
) -> None:
    run = theatre.run(model)
    before = weights(run)

    closed = theatre.cut(
        run, tmp_path / "closed", "add_experts", "surgery.open=false", "surgery.train=none"
    )
    trained = theatre.cut(closed, tmp_path / "open", "open_experts", "surgery.share=0.3")

    for task, logits in theatre.logits(run).items():
        assert torch.equal(theatre.logits(closed)[task], logits)
        assert not torch.equal(theatre.logits(trained)[task], logits)
    after = weights(trained)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    fresh = {name: value for name, value in after.items() if name not in before}
    initial = weights(closed)
    moved = {name for name, value in fresh.items() if not torch.equal(initial[name], value)}
    assert moved == {name for name in fresh if "added_bias" not in name}


def test_the_report_says_what_is_new_and_what_stays(
    theatre: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = theatre.run("mmoe")
    capsys.readouterr()
    run = theatre.cut(old, tmp_path / "run", "add_experts", "surgery.count=3")

    init, words = json.loads((run / "init.json").read_text()), capsys.readouterr().out
    before, after = (weights(folder) for folder in (old, run))
    new = {name: value for name, value in after.items() if name not in before}
    size = sum(value.numel() for value in new.values())
    assert set(init["fresh"]) == set(name.removeprefix("model.") for name in new)
    assert init["parameters"]["new"] == init["parameters"]["trained"] == size
    assert {*init["held"]}.isdisjoint(init["fresh"])
    assert init["surgery"] == "add_experts"
    closed, opened = init["checks"].values()
    assert closed == {"click": 0, "conversion": 0}
    assert 0 < opened["click"] < 0.5
    assert "new experts closed: click bit for bit, conversion bit for bit" in words


def test_a_second_surgery_stands_on_the_first(theatre: Any, tmp_path: Path) -> None:
    once = theatre.cut(theatre.run("ple 2"), tmp_path / "once", "add_experts")
    twice = theatre.cut(once, tmp_path / "twice", "add_experts", "surgery.count=1")

    layer, _ = load_model(twice)[0].layers()
    assert layer.experts[-3:] == ("shared/mlp 4", "shared/mlp 5", "shared/mlp 6")
    after = weights(twice)
    assert all(torch.equal(after[name], value) for name, value in weights(once).items())


def test_the_old_parameters_get_no_gradient(theatre: Any, tmp_path: Path) -> None:
    run = theatre.cut(theatre.run("mmoe"), tmp_path / "run", "add_experts")

    state = torch.load(run / "last.ckpt", weights_only=True)
    parts = state["optimizer_states"][0]["parts"]
    known = [len(group["params"]) for part in parts for group in part["param_groups"]]
    assert known == [0, 4, 4]  # tables; two layers and two gates, and their biases


def test_a_router_whose_experts_are_given_once_says_why(
    theatre: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    sizes = ["model=mmoe", "model.num_experts=4", "router=hierarchical", *SIZES]
    command(f"features={theatre.features}", f"output={run}", *sizes, "max_epochs=1")

    line = refused(capsys, lambda: theatre.cut(run, tmp_path / "new", "add_experts"))

    assert "router: wanted one whose experts can become more or fewer" in line
    assert "HierarchicalRouter: its experts stand in groups of one size" in line
    assert not (tmp_path / "new").exists()
