"""Experts taken out of a trained model, or left as they are while the rest is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch

from recsys_moe.checkpoint import load_model
from recsys_moe.datamodule import Split
from tests.surgery.conftest import refused, weights


def logits_without(run: Path, features: Path, expert: int) -> dict[str, torch.Tensor]:
    """Return what a run's model says with an expert ablated in its first layer."""
    model, spec = load_model(run)
    model.mixture.ablated = (model.layers()[0].name, expert)
    batch = Split(features, "test", spec).batch(slice(None))
    with torch.no_grad():
        found: dict[str, torch.Tensor] = model(batch.codes, batch.numbers)
    return found


@pytest.mark.parametrize(("model", "expert"), [("mmoe", 2), ("ple 2", 1), ("ple 2", 6)])
def test_a_softmax_gate_without_an_expert_is_the_old_one_with_it_ablated(
    model: str, expert: int, theatre: Any, tmp_path: Path
) -> None:
    run = theatre.run(model)
    layer = load_model(run)[0].layers()[0]
    arguments = [f"surgery.experts=[{layer.experts[expert]}]", f"surgery.layer={layer.name}"]

    after = theatre.cut(run, tmp_path / "run", "remove_experts", *arguments, "surgery.train=none")

    expected = logits_without(run, theatre.features, expert)
    for task, logits in theatre.logits(after).items():
        torch.testing.assert_close(logits, expected[task], rtol=0, atol=1e-6)
        assert not torch.equal(logits, theatre.logits(run)[task])
    names = [name for number, name in enumerate(layer.experts) if number != expert]
    assert list(load_model(after)[0].layers()[0].experts) == names


def test_rows_that_did_not_use_it_stay_with_top_k(theatre: Any, tmp_path: Path) -> None:
    run = theatre.run("mmoe top_k")
    after = theatre.cut(
        run, tmp_path / "run", "remove_experts", "surgery.experts=[1]", "surgery.train=none"
    )

    model, spec = load_model(run)
    batch = Split(theatre.features, "test", spec).batch(slice(None))
    with torch.no_grad():
        before, gated = model.routed(batch.codes, batch.numbers)
    for gate in gated:
        untouched_N = (gate.routing.index != 1).all(1)
        gap_N = (theatre.logits(after)[gate.gate] - before[gate.gate]).abs()
        assert gap_N[untouched_N].max() <= 1e-6
        assert 0 < untouched_N.sum() < len(untouched_N)
        assert gap_N[~untouched_N].max() > 1e-5


def test_the_gates_alone_learn_what_to_do_without(theatre: Any, tmp_path: Path) -> None:
    run = theatre.run("mmoe sigmoid")
    after = theatre.cut(run, tmp_path / "run", "remove_experts", "surgery.experts=[0,3]")

    old, new = weights(run), weights(after)
    for name, value in new.items():
        if ".gates." in name:
            assert "selection_bias" in name or not torch.equal(value, old[name][1:3])
        elif ".bank." in name:
            assert torch.equal(value, old[name][1:3])
        else:
            assert torch.equal(value, old[name])


def test_removed_experts_stay_away_in_what_follows(theatre: Any, tmp_path: Path) -> None:
    """Two of four, two added, the first of those removed, one added: the names tell which."""
    run = theatre.run("mmoe")
    still = "surgery.train=none"
    for number, (kind, argument, names) in enumerate(
        (
            ("remove_experts", "surgery.experts=[1,2]", "mlp 0, mlp 3"),
            ("add_experts", "surgery.count=2", "mlp 0, mlp 3, mlp 4, mlp 5"),
            ("remove_experts", "surgery.experts=[mlp 4]", "mlp 0, mlp 3, mlp 5"),
            ("remove_experts", "surgery.experts=[mlp 0]", "mlp 3, mlp 5"),
            ("add_experts", "surgery.count=1", "mlp 3, mlp 5, mlp 6"),
        )
    ):
        run = theatre.cut(run, tmp_path / str(number), kind, argument, still)
        assert ", ".join(load_model(run)[0].layers()[0].experts) == names


@pytest.mark.parametrize("optimizer", ["adamw_and_sgd", "adamw"])
def test_frozen_experts_stay_bit_for_bit(optimizer: str, theatre: Any, tmp_path: Path) -> None:
    run = theatre.run("ple 2")
    after = theatre.cut(
        run,
        tmp_path / "run",
        "freeze_experts",
        "surgery.layer=level 1",
        "surgery.experts=[2,shared/mlp 3]",
        f"optimizer={optimizer}",
        "optimizer.weight_decay=0.5",
    )

    for name, rows in (("task_banks.1", [0]), ("shared_bank", [3])):
        for tensor in ("weights_EOI.0", "weights_EOI.1", "biases_EO.0", "biases_EO.1"):
            path = f"model.mixture.levels.1.{name}.{tensor}"
            before, now = weights(run)[path], weights(after)[path]
            same = [torch.equal(a, b) for a, b in zip(before, now, strict=True)]
            assert [number for number, equal in enumerate(same) if equal] == rows


def test_wrong_experts_are_refused(
    theatre: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(model: str, *arguments: str, kind: str = "remove_experts") -> str:
        new = tmp_path / "new"
        return refused(capsys, lambda: theatre.cut(theatre.run(model), new, kind, *arguments))

    assert "experts: wanted 0 to 3 or a name" in line("mmoe", "surgery.experts=[4]")
    assert "Did you mean 'mlp 3'?" in line("mmoe", "surgery.experts=[mlp3]")
    assert "surgery.layer: wanted level 0 or level 1" in line("ple 2", "surgery.experts=[0]")
    assert "wanted one of a task's own experts to stay" in line(
        "ple 2", "surgery.experts=[0,1]", "surgery.layer=level 0"
    )
    assert "k: wanted 1 to 1" in line("mmoe top_k", "surgery.experts=[0,1,2]")
    assert "surgery.train: wanted gates or all or none" in line(
        "mmoe", "surgery.experts=[0]", "surgery.train=new"
    )
    assert "experts: wanted experts of 'experts', by number or name, got none" in line(
        "mmoe", "surgery.experts=[]", kind="freeze_experts"
    )
