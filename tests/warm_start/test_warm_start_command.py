"""`init_from` of the train command: what it writes, says and refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

STILL = ["optimizer.lr=0", "optimizer.table_lr=0"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "best.ckpt", weights_only=True)["state_dict"]


def test_the_command_starts_from_a_run_and_says_what_it_took(
    toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = toy.run("mmoe")
    capsys.readouterr()
    output = toy.train(toy.old, tmp_path / "run", "mmoe", f"init_from={start}", *STILL)

    words = capsys.readouterr().out
    init = json.loads((output / "init.json").read_text())
    expected = weights(start)
    assert all(torch.equal(weights(output)[name], value) for name, value in expected.items())
    assert init["run"] == str(start)
    assert init["moved"]["embeddings.weight_Vd"]["item"] == {"moved": 9, "fresh": 0, "left": 0}
    assert {*init["moved"], *init["loaded"]} == {name.removeprefix("model.") for name in expected}
    assert init["fresh"] == {}
    assert "moved table rows: item 9 of 9, shop 7 of 7, tag 12 of 12, price_bin 6 of 6" in words
    assert "fresh tensors: none" in words

    toy.train(toy.old, output, "mmoe", f"init_from={start}", *STILL)
    assert "finished, nothing to do" in capsys.readouterr().out


def test_a_start_draws_no_random_numbers(toy: Any, tmp_path: Path) -> None:
    """Training from a run's own initial weights is the run itself, dropout masks included."""
    features = toy.old
    still = toy.train(features, tmp_path / "still", "mmoe", *STILL)

    first, again = (
        toy.train(features, tmp_path / name, "mmoe", *start)
        for name, start in (("first", []), ("again", [f"init_from={still}"]))
    )

    assert all(torch.equal(weights(again)[name], value) for name, value in weights(first).items())


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("init_from={other}", "started with another init_from.best.ckpt"),
        ("init_from=null", "started with another init_from"),
        ("init_from_optimizer=true", "init_from_optimizer: wanted false"),
        ("init_from={features}", "wanted the folder of a finished run, got no run"),
        ("init_from=false", "init_from: wanted a value or null"),
        ("init_from={output}", "init_from: wanted another folder than output"),
    ],
)
def test_a_wrong_start_is_refused_in_one_line(
    argument: str, words: str, toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = toy.run("mmoe")
    other = toy.train(toy.old, tmp_path / "other", "mmoe", "seed=2")
    output = toy.train(toy.old, tmp_path / "run", "mmoe", f"init_from={start}")
    given = argument.format(other=other, features=toy.old, output=output)
    capsys.readouterr()

    with pytest.raises(SystemExit) as ended:
        toy.train(toy.old, output, "mmoe", f"init_from={start}", given)

    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1
