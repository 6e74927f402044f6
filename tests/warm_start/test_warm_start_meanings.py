"""A model started from another run: what is another task's or reads other inputs starts fresh."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys_moe.checkpoint import load_model
from recsys_moe.paths import CONF_DIR
from recsys_moe.spec import Task

MODELS = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml"))
CLICK = Task(name="click", label="click")
BUY = Task(name="bu.y", label="buy", space="click")
SHARE = Task(name="share", label="share")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("tasks", [(BUY, CLICK), (SHARE, BUY, CLICK)], ids=["swapped", "one more"])
def test_a_task_keeps_what_is_its_own_by_its_name(
    model: str, tasks: tuple[Task, ...], toy: Any, tmp_path: Path
) -> None:
    levels = {"num_levels": 1} if model == "ple" else {}
    run = toy.train(toy.old, tmp_path / "run", model, **levels)
    features, rows = toy.features(tmp_path / "new", tasks=tasks), toy.draw(200, seed=5)

    warm, fresh, found = toy.start(run, features, model, **levels)

    after = toy.logits(warm, features, rows)
    for task, expected in toy.logits(load_model(run)[0], toy.old, rows).items():
        np.testing.assert_allclose(after[task], expected, rtol=0, atol=1e-6)
    assert bool(found.fresh) == (SHARE in tasks)
    assert all(why == "task 'share' is new" for why in found.fresh.values())
    for name in found.fresh:
        assert torch.equal(warm.state_dict()[name], fresh.state_dict()[name])


def test_a_gate_over_the_experts_of_all_tasks_needs_the_same_tasks(
    toy: Any, tmp_path: Path
) -> None:
    features = toy.features(tmp_path / "new", tasks=(BUY, CLICK))

    _, _, found = toy.start(toy.run("ple"), features, "ple")

    gate = "mixture.levels.0.shared_gate.linear"
    assert set(found.fresh) == {f"{gate}.weight", f"{gate}.bias"}
    assert all("depends on all tasks" in why for why in found.fresh.values())


@pytest.mark.parametrize(
    "changed", [replace(BUY, space="all"), replace(BUY, kind="regression", scale=2.0)]
)
def test_a_task_that_means_something_else_starts_fresh(
    changed: Task, toy: Any, tmp_path: Path
) -> None:
    features = toy.features(tmp_path / "new", tasks=(CLICK, changed))

    _, _, found = toy.start(toy.run("mmoe"), features, "mmoe")

    names = {*found.moved, *found.loaded, *found.fresh}
    own = {name for name in names if name.startswith(("mixture.gates.1.", "towers.1."))}
    assert set(found.fresh) == own
    assert all("means something else" in why for why in found.fresh.values())


FIRST_LAYERS = {
    "mmoe": {
        "mixture.bank.weights_EOI.0",
        "mixture.gates.0.linear.weight",
        "mixture.gates.1.linear.weight",
    },
    "shared_bottom": {"mixture.bank.weights_EOI.0"},
    "single_task": {f"models.{n}.mixture.bank.weights_EOI.0" for n in (0, 1)},
    "ple": {
        "mixture.levels.0.shared_bank.weights_EOI.0",
        "mixture.levels.0.shared_gate.linear.weight",
        *(f"mixture.levels.0.task_banks.{n}.weights_EOI.0" for n in (0, 1)),
        *(f"mixture.levels.0.task_gates.{n}.linear.weight" for n in (0, 1)),
    },
}


@pytest.mark.parametrize("model", sorted(FIRST_LAYERS))
@pytest.mark.parametrize(
    ("change", "words", "fresh_table"),
    [
        ("more", "'more' is new", None),
        ("center", "'price' differs", None),
        ("edges", "'price_bin' differs", "price_bin"),
        ("num_buckets", "the table 'tag' differs", "tag"),
    ],
)
def test_other_inputs_leave_what_reads_them_fresh_and_only_that(
    model: str, change: str, words: str, fresh_table: str | None, toy: Any, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "more": (toy.number("more"),),
        "center": 0.5,
        "edges": (-1.0, 0.0, 2.0),
        "num_buckets": 12,
    }
    features = toy.features(tmp_path / "new", **{change: changes[change]})

    warm, fresh, found = toy.start(toy.run(model), features, model)

    assert set(found.fresh) == FIRST_LAYERS[model]
    assert all(words in why for why in found.fresh.values())
    for name in found.fresh:
        assert torch.equal(warm.state_dict()[name], fresh.state_dict()[name])
    assert found.moved
    for tables in found.moved.values():
        unmoved = [name for name, counts in tables.items() if not counts["moved"]]
        assert unmoved == ([fresh_table] if fresh_table else [])


def test_another_architecture_takes_what_has_its_name_and_shape(toy: Any) -> None:
    _, _, found = toy.start(toy.run("shared_bottom"), toy.old, "mmoe", num_experts=4)

    assert set(found.moved) == {"embeddings.weight_Vd"}
    assert all(name.startswith("towers.") for name in found.loaded)
    assert len(found.loaded) == 8
    assert found.fresh["mixture.gates.0.linear.bias"] == "the run has none"
    assert found.fresh["mixture.bank.weights_EOI.0"] == "shape (4, 6, 13), not (1, 6, 13)"
