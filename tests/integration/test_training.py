"""The train command on real files: what it writes, how it comes back, what it refuses."""

import csv
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys_moe import evaluate, train

MakeFeatures = Callable[..., Path]
SMALL = ["batch_size=64", "max_epochs=2", "model.widths=[16,8]", "model.dropout=0.1"]
_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["recsys_moe.train", "recsys_moe.fit"])


def run(*arguments: str, silent: bool = False) -> None:
    """Run the command as a user would, in this process."""
    sys.argv = ["recsys-moe-train", *arguments]
    if silent:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (until the child ends)
    train.main()


def in_child(*arguments: str) -> multiprocessing.process.BaseProcess:
    child = _FORKSERVER.Process(target=run, args=arguments, kwargs={"silent": True})
    child.start()
    return child


def wait_for_a_new(file: Path, child: multiprocessing.process.BaseProcess) -> None:
    def version() -> int:
        return file.stat().st_mtime_ns if file.exists() else 0

    before = version()
    while version() == before and child.is_alive():
        time.sleep(0.001)


def weights(run_folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return torch.load(run_folder / name, weights_only=True)["state_dict"]


def assert_same_run(found: Path, expected: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        for key, value in weights(expected, name).items():
            assert torch.equal(weights(found, name)[key], value), (name, key)
    assert (found / "metrics.csv").read_bytes() == (expected / "metrics.csv").read_bytes()


@pytest.fixture(scope="module")
def features(make_features: MakeFeatures) -> Path:
    return make_features(rows=1500)


@pytest.fixture(scope="module")
def undisturbed(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    child = in_child(f"features={features}", f"output={output}", *SMALL)
    child.join()
    assert child.exitcode == 0
    return output


def test_a_run_holds_its_files_and_every_epoch(undisturbed: Path) -> None:
    names = {path.name for path in undisturbed.iterdir()}
    rows = list(csv.DictReader((undisturbed / "metrics.csv").open()))

    assert {"config.yaml", "feature_spec.json", "vocab", "sample.parquet"} <= names
    assert {"last.ckpt", "best.ckpt", "metrics.csv", "tensorboard", "_SUCCESS"} <= names
    assert [row["epoch"] for row in rows if row["valid/auc"]] == ["0", "1"]


def test_ten_kills_leave_the_weights_of_the_undisturbed_run(
    features: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    arguments = [f"features={features}", f"output={output}", *SMALL, "checkpoint_every_seconds=0"]
    moments = random.Random(7)
    for _ in range(10):  # a few of the 48 steps each, and somewhere in the next
        child = in_child(*arguments)
        for _ in range(moments.randint(1, 2)):
            wait_for_a_new(output / "last.ckpt", child)
        time.sleep(moments.uniform(0, 0.015))
        assert child.is_alive(), "the job was too quick to be killed"
        os.kill(child.pid, signal.SIGKILL)  # type: ignore[arg-type]
        child.join()
    child = in_child(*arguments)
    child.join()

    assert child.exitcode == 0
    assert_same_run(output, undisturbed)


@pytest.mark.parametrize("written", ["step 1", "step 23", "step 24", "best.ckpt", "last.ckpt"])
def test_death_right_after_any_file_is_survived(
    features: Path, undisturbed: Path, tmp_path: Path, written: str
) -> None:
    """Step 24 is the last of the first epoch, whose end writes best.ckpt and then last.ckpt."""
    output = tmp_path / "run"
    arguments = [f"features={features}", f"output={output}", *SMALL, "checkpoint_every_seconds=0"]
    child = _FORKSERVER.Process(target=die_after, args=(written, *arguments))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL

    child = in_child(*arguments)
    child.join()

    assert child.exitcode == 0
    assert_same_run(output, undisturbed)


def die_after(written: str, *arguments: str) -> None:
    """Train, and be killed at a step's end or once a file of the first epoch's end is there."""
    from recsys_moe.run_files import Checkpoints

    write, batch_end = Checkpoints._write, Checkpoints.on_train_batch_end

    def die_at(trainer: Any, now: str) -> None:
        if now == written and (trainer.global_step == 24 or now.startswith("step")):
            os.kill(os.getpid(), signal.SIGKILL)

    def write_and_die(self: Checkpoints, trainer: Any, name: str) -> None:
        write(self, trainer, name)
        die_at(trainer, name)

    def step_and_die(self: Checkpoints, trainer: Any, *rest: Any) -> None:
        batch_end(self, trainer, *rest)
        die_at(trainer, f"step {trainer.global_step}")

    Checkpoints._write, Checkpoints.on_train_batch_end = write_and_die, step_and_die  # type: ignore[method-assign,assignment]
    run(*arguments, silent=True)


def test_a_stopped_run_stays_stopped(features: Path, tmp_path: Path) -> None:
    """Killed between its last checkpoint and its success mark, it must not train on."""
    output = tmp_path / "run"
    arguments = [
        f"features={features}",
        f"output={output}",
        *SMALL,
        "max_epochs=9",
        "patience=1",
        "optimizer.lr=0",
        "optimizer.table_lr=0",
    ]
    child = in_child(*arguments)
    child.join()
    before = weights(output)
    epochs = (output / "metrics.csv").read_text()
    (output / "_SUCCESS").unlink()

    child = in_child(*arguments)
    child.join()

    assert child.exitcode == 0
    assert (output / "metrics.csv").read_text() == epochs
    assert all(torch.equal(weights(output)[key], value) for key, value in before.items())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    features: Path, undisturbed: Path, tmp_path: Path
) -> None:
    children = [
        in_child(f"features={features}", f"output={tmp_path / str(seed)}", *SMALL, f"seed={seed}")
        for seed in (1, 2)
    ]
    for child in children:
        child.join()

    assert_same_run(tmp_path / "1", undisturbed)
    assert any(
        not torch.equal(weights(tmp_path / "2")[k], v) for k, v in weights(undisturbed).items()
    )


def test_a_finished_run_is_left_alone(
    features: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (undisturbed / "last.ckpt").stat().st_mtime_ns
    started = time.monotonic()
    run(f"features={features}", f"output={undisturbed}", *SMALL)

    assert time.monotonic() - started < 5
    assert "nothing to do" in capsys.readouterr().out
    assert (undisturbed / "last.ckpt").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model=pel"], "Did you mean 'ple'?"),
        (["model.num_shared_expert=3"], "Did you mean 'model.num_shared_experts'?"),
        (["optimizer.lrr=3"], "Did you mean 'optimizer.lr'?"),
        (["trainer=gpu"], "wanted a CUDA device, got none"),
        (["trainer.devices=2"], "trainer.devices: wanted 1"),
        (["trainer.precision=bf17"], "trainer: wanted"),
        (["+model.foo=3"], "model: wanted"),
        (["model.dropout=2"], "model.dropout: wanted a share"),
        (["optimizer.lr=fast"], "optimizer"),
        (["max_epochs=1.5"], "max_epochs: wanted a whole number"),
        (["model.widths=[0]"], "model.widths: wanted whole numbers of at least 1"),
        (["max_epochs=3"], "another config.max_epochs"),
        (["features=nowhere"], "wanted a finished features folder, got none"),
        (["monitor=valid/acu"], "monitor"),
        (["model._target_=os.system"], "model._target_"),
        (["batch_size=0"], "batch_size"),
        (["overwrite=flase"], "overwrite: wanted true or false, got 'flase'"),
        (["+patence=3"], "patence: wanted a known setting, got 'patence'. Did you mean 'patience'"),
        (["~seed"], "seed: wanted seed=…, got nothing"),
        (["model=null"], "Config group override must be a string"),
        (["features="], "features: wanted features=…, got nothing"),
    ],
)
def test_a_wrong_request_ends_with_2_and_one_line(
    features: Path,
    undisturbed: Path,
    tmp_path: Path,
    overrides: list[str],
    line: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    output = undisturbed if "max_epochs=3" in overrides else tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:
        run(f"features={features}", f"output={output}", *SMALL, *overrides)

    error = capfd.readouterr().err
    assert stopped.value.code == 2
    assert error.count("\n") == 1
    assert error.startswith("recsys-moe-train: ")
    assert line in error


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"split": ""}, "split=: wanted a split of"),
        ({"split": "../.."}, "(test, train, valid), got '../..'"),
        ({"split": "null"}, "split: wanted a word"),
        ({"run": "features"}, "wanted a finished run, got none"),
        ({"features": "run"}, "wanted a finished features folder, got none"),
        ({"run": "torn"}, "best.ckpt: wanted a checkpoint of tensors and plain values"),
        ({"run": "foreign"}, "model._target_: wanted one under"),
        ({"run": "cut"}, "config.yaml: wanted a readable YAML file"),
    ],
)
def test_a_wrong_evaluation_ends_with_2_and_one_line(
    features: Path,
    undisturbed: Path,
    tmp_path: Path,
    changes: dict[str, str],
    line: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folders = {"features": features, "run": undisturbed}
    for name, file, text in (
        ("torn", "best.ckpt", "hi\n"),
        ("foreign", "config.yaml", "model: {_target_: os.system}"),
        ("cut", "config.yaml", "{"),
    ):
        folders[name] = Path(shutil.copytree(undisturbed, tmp_path / name))
        (folders[name] / file).write_text(text)
    request = {"run": "run", "features": "features"} | changes
    sys.argv = ["recsys-moe-evaluate"]
    sys.argv += [f"{key}={folders.get(value, value)}" for key, value in request.items()]
    with pytest.raises(SystemExit) as stopped:
        evaluate.main()

    error = capfd.readouterr().err
    assert stopped.value.code == 2
    assert error.count("\n") == 1
    assert line in error


def test_an_evaluation_needs_the_features_of_the_run(
    undisturbed: Path, make_features: MakeFeatures, capfd: pytest.CaptureFixture[str]
) -> None:
    other = make_features(rows=40, seed=5)
    sys.argv = ["recsys-moe-evaluate", f"run={undisturbed}", f"features={other}"]
    with pytest.raises(SystemExit) as stopped:
        evaluate.main()

    assert stopped.value.code == 2
    assert "another feature spec" in capfd.readouterr().err
