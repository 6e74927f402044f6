"""Gates through the train command: collapse, balance, and runs that are killed and go on."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys_moe import train

MakeFeatures = Callable[..., Path]
SMALL = ["batch_size=64", "max_epochs=2", "model.widths=[8,4]", "model.tower_widths=[4]"]
SWITCH = ["model=mmoe", "model.num_experts=4", "router=switch", "+router.bias=true"]
STILL = ["optimizer.lr=0", "optimizer.table_lr=0", "balance=none"]
_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["recsys_moe.train", "recsys_moe.fit"])


def run(*arguments: str, silent: bool = False) -> None:
    sys.argv = ["recsys-moe-train", *arguments]
    if silent:
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (until the child ends)
    train.main()


def die_after(num_batches: int, *arguments: str) -> None:
    """Train, and be killed after some batches, a checkpoint of the last step written."""
    from recsys_moe.run_files import Checkpoints

    batch_end = Checkpoints.on_train_batch_end

    def end_and_die(self: Checkpoints, trainer: Any, *rest: Any) -> None:
        batch_end(self, trainer, *rest)
        if rest[-1] + 1 == num_batches:
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoints.on_train_batch_end = end_and_die  # type: ignore[method-assign]
    run(*arguments, silent=True)


def child(target: Callable[..., None], *arguments: Any, **options: Any) -> int | None:
    process = _FORKSERVER.Process(target=target, args=arguments, kwargs=options)
    process.start()
    process.join()
    return process.exitcode


def weights(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return torch.load(folder / name, weights_only=True)["state_dict"]


def same_weights(first: Path, second: Path) -> bool:
    pair = weights(first), weights(second)
    return all(torch.equal(pair[0][key], value) for key, value in pair[1].items())


def columns(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().splitlines()[0].split(",")


@pytest.fixture(scope="module")
def features(make_features: MakeFeatures) -> Path:
    return make_features(rows=640)


@pytest.mark.parametrize(
    "settings",
    [
        ["router=noisy_top_k", "log_every_steps=4", "model.num_levels=2"],
        ["model=mmoe", "router=sigmoid", "log_every_steps=2", "+trainer.accumulate_grad_batches=2"],
    ],
    ids=["noise", "bias and micro-batches"],
)
def test_a_killed_run_ends_as_the_undisturbed_one(
    features: Path, tmp_path: Path, settings: list[str]
) -> None:
    """Killed in the middle of an epoch, a log interval and a step, some rows already logged."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    arguments = [f"features={features}", *SMALL, *settings, "checkpoint_every_seconds=0"]
    assert child(run, *arguments, f"output={undisturbed}", silent=True) == 0

    assert child(die_after, 7, *arguments, f"output={killed}") == -signal.SIGKILL
    assert child(run, *arguments, f"output={killed}", silent=True) == 0

    assert same_weights(killed, undisturbed)
    for name in ("metrics.csv", "gates.csv", "health.json"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes(), name
    steps = [int(row["step"]) for row in csv.DictReader((killed / "gates.csv").open())]
    by_two = "+trainer.accumulate_grad_batches=2" in settings
    assert steps == ([1, 3, 4, 6, 8, 9] if by_two else [3, 7, 9, 13, 17, 19])
    biases = [value for key, value in weights(killed).items() if key.endswith("selection_bias")]
    assert all(0 < bias.abs().max() <= 10.5e-3 for bias in biases)  # ten steps at most
    assert len(biases) == (2 if "router=sigmoid" in settings else 0)


@pytest.fixture(scope="module")
def collapsed(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose gates all choose expert 1, planted in its weights."""
    folder = tmp_path_factory.mktemp("collapsed") / "run"
    run(f"features={features}", f"output={folder}", *SMALL, *SWITCH, "max_epochs=1")
    checkpoint = torch.load(folder / "best.ckpt", weights_only=True)
    for key, value in checkpoint["state_dict"].items():
        if ".gates." in key:
            value.zero_()
            if key.endswith("bias"):
                value[1] = 50.0
    torch.save(checkpoint, folder / "best.ckpt")
    return folder


def test_a_collapse_is_reported(
    features: Path, collapsed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"features={features}", f"init_from={collapsed}", *SMALL, *SWITCH, *STILL]
    run(*arguments, f"output={tmp_path / 'run'}")

    said = capsys.readouterr().err
    assert said.count("experts: expert 0 is dead") == 1  # of two epochs
    row = next(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert float(row["gates/experts/dead_experts"]) == 3
    assert float(row["gates/experts/effective_experts"]) == pytest.approx(1)
    (layer,) = json.loads((tmp_path / "run" / "health.json").read_text())["layers"]
    assert layer["dead_experts"] == [0, 2, 3]


def test_a_collapse_ends_the_run_if_asked_and_again_when_it_goes_on(
    features: Path, collapsed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    arguments = [f"features={features}", f"init_from={collapsed}", *SMALL, *SWITCH, *STILL]
    for again in (False, True):
        with pytest.raises(SystemExit) as stopped:
            run(*arguments, f"output={output}", "fail_on_collapse=true")

        error = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 1
        assert error[-1].startswith("recsys-moe-train: experts: wanted fewer than 50% of 4 experts")
        assert torch.load(output / "last.ckpt", weights_only=True)["global_step"] == 10
        assert {"last.ckpt", "best.ckpt", "health.json", "gates.csv"} <= {*os.listdir(output)}  # noqa: PTH208
        assert not (output / "_SUCCESS").exists()
        assert not again or len(error) == 1
    shutil.rmtree(output)

    run(*arguments, f"output={output}", "fail_on_collapse=0.8")  # three of four are 75 %


def test_softmax_trains_as_without_balance_and_top_k_does_not(
    features: Path, tmp_path: Path
) -> None:
    folders = {}
    for router in ("softmax", "top_k"):
        for balance in ("auto", "none", "custom"):
            folder = folders[router, balance] = tmp_path / f"{router}-{balance}"
            arguments = [f"router={router}", f"balance={balance}", "max_epochs=1"]
            run(f"features={features}", f"output={folder}", *SMALL, *arguments)

    for router in ("softmax", "top_k"):
        assert same_weights(folders[router, "custom"], folders[router, "none"])
    assert same_weights(folders["softmax", "auto"], folders["softmax", "none"])
    assert not same_weights(folders["top_k", "auto"], folders["top_k", "none"])
    assert "train/balance/switch" in columns(folders["top_k", "auto"])
    assert not any("balance" in name for name in columns(folders["top_k", "none"]))


def test_it_trains_in_bf16_and_without_gates(features: Path, tmp_path: Path) -> None:
    common = [f"features={features}", *SMALL, "max_epochs=1"]
    bf16 = ["router=top_k", "trainer.precision=bf16-mixed"]
    run(*common, *bf16, f"output={tmp_path / 'bf16'}")
    run(*common, "model=single_task", f"output={tmp_path / 'alone'}")

    assert "gates/level 0/gate_entropy" in columns(tmp_path / "bf16")
    assert not any("gates/" in name for name in columns(tmp_path / "alone"))
    assert not {"gates.csv", "health.json"} & {*os.listdir(tmp_path / "alone")}  # noqa: PTH208


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["fail_on_collapse=2"], "fail_on_collapse: wanted never, true (half of a layer's experts"),
        (["fail_on_collapse=always"], "fail_on_collapse: wanted never"),
        (["balance=atuo"], "Did you mean 'auto'?"),
        (["balance=custom", "balance.load=0.1"], "balance.load: wanted 0 for all routers but"),
        (["balance.bias_rat=1"], "Did you mean 'balance.bias_rate'?"),
        (["+trainer.accumulate_grad_batches=0"], "accumulate_grad_batches: wanted a whole number"),
    ],
)
def test_a_wrong_request_ends_with_2_one_line_and_no_trace(
    features: Path,
    tmp_path: Path,
    overrides: list[str],
    line: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(f"features={features}", f"output={tmp_path / 'run'}", *SMALL, *overrides)

    error = capfd.readouterr().err
    assert (stopped.value.code, error.count("\n")) == (2, 1)
    assert line in error
    assert not (tmp_path / "run").exists()


def test_a_router_is_refused_where_there_is_no_gate(
    make_features: MakeFeatures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = make_features(rows=400)

    with pytest.raises(SystemExit) as caught:
        run(f"features={features}", f"output={tmp_path / 'r'}", "model=single_task", "router=top_k")

    assert caught.value.code == 2
    assert "router=top_k: wanted a model with gates" in capsys.readouterr().err
