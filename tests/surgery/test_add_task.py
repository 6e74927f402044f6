"""A task added to a trained model: what the others say stays what it was, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from recsys_moe.checkpoint import load_model
from tests.surgery.conftest import command, refused, weights


@pytest.mark.parametrize(
    ("model", "first"),
    [
        ("mmoe", True),
        ("mmoe top_k", False),
        ("moe top_p", False),
        ("ple 2", True),
        ("ple 2", False),
        ("ple 2 top_k", False),
        ("single_task", True),
        ("shared_bottom", False),
    ],
)
def test_the_old_tasks_say_what_they_said(
    model: str, first: bool, theatre: Any, tmp_path: Path
) -> None:
    run, features = theatre.run(model), theatre.with_task(tmp_path / "features", first=first)

    after = theatre.cut(run, tmp_path / "run", "add_task", features=features)

    found = theatre.logits(after, features)
    for task, logits in theatre.logits(run).items():
        if "top_k" in model:  # an expert gets more rows, and a product of more rows may round
            torch.testing.assert_close(found[task], logits, rtol=0, atol=1e-6)
        else:
            assert torch.equal(found[task], logits)
    assert found["like"].std() > 1e-4


def test_a_task_can_start_as_another(theatre: Any, tmp_path: Path) -> None:
    features = theatre.with_task(tmp_path / "features", first=True)
    still = ["surgery.from_task=click", "surgery.train=none"]
    after = theatre.cut(
        theatre.run("ple 2"), tmp_path / "run", "add_task", *still, features=features
    )

    found = theatre.logits(after, features)
    assert torch.equal(found["like"], found["click"])


def test_what_tasks_share_does_not_see_what_came_late(theatre: Any, tmp_path: Path) -> None:
    """Nor after another surgery on top."""
    features = theatre.with_task(tmp_path / "features", first=True)
    once = theatre.cut(theatre.run("ple 2"), tmp_path / "once", "add_task", features=features)
    twice = theatre.cut(once, tmp_path / "twice", "add_experts", features=features)

    for run, size in ((once, 10), (twice, 12)):
        layer, _ = load_model(run)[0].layers()
        assert layer.gates == ("like", "click", "conversion", "shared")
        own = [owner == "like" for owner in layer.owners]
        assert sum(own) == 2
        assert len(own) == size
        assert list(layer.visible[-1]) == [not mine for mine in own]
    assert all(torch.equal(weights(twice)[k], value) for k, value in weights(once).items())


def test_wrong_tasks_are_refused(
    theatre: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, features = theatre.run("mmoe"), theatre.with_task(tmp_path / "features", first=True)
    new = tmp_path / "new"

    assert "wanted features with a task more than the run's" in refused(
        capsys, lambda: theatre.cut(run, new, "add_task")
    )
    assert "Did you mean 'click'?" in refused(
        capsys,
        lambda: theatre.cut(run, new, "add_task", "surgery.from_task=clik", features=features),
    )
    assert "surgery=add_task: wanted the model as init_from has it" in refused(
        capsys, lambda: theatre.cut(run, new, "add_task", "model=mmoe", features=features)
    )
    assert "wanted init_from=…" in refused(
        capsys,
        lambda: command(f"features={features}", f"output={new}", "surgery=add_task"),
    )
    assert not new.exists()
