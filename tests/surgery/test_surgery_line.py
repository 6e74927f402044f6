"""A surgery from the command line to the artifact, and one that is killed on the way."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from export.score import Scorer
from recsys_moe.run_files import Checkpoints
from tests.surgery.conftest import export, weights


def test_artifacts_agree_to_the_bit_where_nothing_was_to_change(
    theatre: Any, tmp_path: Path
) -> None:
    """A task more and an expert for the green: red clicks are what they were."""
    run, features = theatre.run("mmoe"), theatre.with_task(tmp_path / "features", first=True)
    task = theatre.cut(run, tmp_path / "task", "add_task", features=features)
    green = ["surgery.feature=color", "surgery.value=green", "optimizer.lr=0.1"]
    after = theatre.cut(task, tmp_path / "domain", "add_domain", *green, features=features)

    rows = pl.read_parquet(features / "prepared" / "test" / "*.parquet")
    old = Scorer(export(run, tmp_path / "before")).predict(rows)
    new = Scorer(export(after, tmp_path / "after")).predict(rows)

    is_green = (rows["color"] == "green").to_numpy()
    assert new.columns == ["p_like", *old.columns]
    for column in old.columns:
        moved_N = old[column].to_numpy() != new[column].to_numpy()
        assert not moved_N[~is_green].any()
        assert moved_N[is_green].mean() > 0.9


class Killed(BaseException):
    """What ends a run in the test below."""


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("add_experts", ["surgery.count=3"]),
        ("freeze_experts", ["surgery.experts=[1]", "surgery.layer=level 0", "optimizer=adamw"]),
    ],
)
def test_a_killed_surgery_ends_as_an_undisturbed_one(
    kind: str,
    arguments: list[str],
    theatre: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, write = theatre.run("ple 2"), Checkpoints._write
    arguments = [*arguments, "checkpoint_every_seconds=0", "max_epochs=2"]
    whole = theatre.cut(run, tmp_path / "whole", kind, *arguments)

    def write_and_die(self: Checkpoints, trainer: Any, name: str) -> None:
        write(self, trainer, name)
        if trainer.global_step == 9:
            raise Killed

    monkeypatch.setattr(Checkpoints, "_write", write_and_die)
    with pytest.raises(Killed):
        theatre.cut(run, tmp_path / "cut", kind, *arguments)
    monkeypatch.setattr(Checkpoints, "_write", write)
    capsys.readouterr()
    cut = theatre.cut(run, tmp_path / "cut", kind, *arguments)

    assert "continues from step 9" in capsys.readouterr().out
    for name in ("best.ckpt", "last.ckpt"):
        expected, found = weights(whole, name), weights(cut, name)
        assert all(np.array_equal(found[key], value) for key, value in expected.items())
    for name in ("metrics.csv", "init.json", "config.yaml"):
        other = str(tmp_path / "cut"), str(tmp_path / "whole")
        assert (cut / name).read_text().replace(*other) == (whole / name).read_text()

    theatre.cut(run, tmp_path / "cut", kind, *arguments)
    assert "nothing to do" in capsys.readouterr().out
