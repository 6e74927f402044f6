"""What training leaves in its folder as it runs: checkpoints to come back to, and metrics.csv."""

import csv
import io
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers.logger import Logger

from recsys_moe.files import whole_file, write_text
from recsys_moe.progress import say


class Checkpoints(Callback):
    """Write last.ckpt every so often and after each epoch, best.ckpt after the best; stop in time.

    Files appear whole or not at all. best.ckpt is written first: whoever stops in between finds the
    epoch unfinished in last.ckpt and writes the same best.ckpt again. The state holds the random
    state, so that a resumed run draws the same dropout masks.

    Attributes:
        logs: The files of rows that go with a checkpoint: saved before it, and rewound to it.
    """

    def __init__(
        self,
        output: Path,
        *,
        monitor: str,
        mode: str,
        patience: int,
        every_seconds: float,
        batch_size: int,
    ) -> None:
        self.output, self.monitor, self.sign = output, monitor, 1 if mode == "max" else -1
        self.patience, self.every_seconds = patience, every_seconds
        self.batch_size = batch_size
        self.logs: list[MetricsFile] = []
        self.best: float | None = None
        self.epochs_since_best = 0
        self._random: dict[str, Any] | None = None
        self._written = self._epoch_started = time.monotonic()
        self._first_step, self._epoch_seconds = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up a resumed run: random state, logs without what it lost, stopped if it was."""
        if self._random is not None:
            torch.set_rng_state(self._random["cpu"])
            if torch.cuda.is_available() and self._random["cuda"]:
                torch.cuda.set_rng_state_all(self._random["cuda"])
        self._written = self._epoch_started = time.monotonic()
        self._first_step = trainer.global_step
        trainer.should_stop = self._exhausted()
        for log in self.logs:
            log.rewind(trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the epoch."""
        self._epoch_started, self._first_step = time.monotonic(), trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it: the rate is that of training alone."""
        self._epoch_seconds = time.monotonic() - self._epoch_started

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write last.ckpt when it is old, between two steps; an epoch's end writes its own."""
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        is_old = time.monotonic() - self._written >= self.every_seconds
        if is_step and is_old and not trainer.is_last_batch:
            self._write(trainer, "last.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the epoch by the monitored metric and write what it earned."""
        value = float(trainer.callback_metrics[self.monitor])
        better = self.best is None or self.sign * value > self.sign * self.best
        self.epochs_since_best = 0 if better else self.epochs_since_best + 1
        if better:
            self.best = value
            self._write(trainer, "best.ckpt")
        self._write(trainer, "last.ckpt")
        metrics = " ".join(
            f"{name.removeprefix('valid/')} {float(metric):.5f}"
            for name, metric in sorted(trainer.callback_metrics.items())
            if name.startswith(("valid/auc", "valid/r2"))
        )
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        steps = trainer.global_step - self._first_step
        rate = steps * self.batch_size / self._epoch_seconds
        say("train", f"{epoch}  {metrics}  {rate:,.0f} rows/s{'  best' if better else ''}")
        if self._exhausted():
            say("train", f"stopped: {self.patience} epochs without a better {self.monitor}")
            trainer.should_stop = True

    def keep(self, trainer: Trainer) -> None:
        """Write best.ckpt of a model that was only validated."""
        self.best = float(trainer.callback_metrics[self.monitor])
        self._write(trainer, "best.ckpt")

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors only."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "best": self.best,
            "epochs_since_best": self.epochs_since_best,
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state; the random state waits for the first step."""
        self.best, self.epochs_since_best = state_dict["best"], state_dict["epochs_since_best"]
        self._random = state_dict["random"]

    def _exhausted(self) -> bool:
        return self.patience > 0 and self.epochs_since_best >= self.patience

    def _write(self, trainer: Trainer, name: str) -> None:
        for log in self.logs:
            log.save()  # first: a resumed run has lost no row, and drops those it writes again
        with whole_file(self.output / name) as partial:
            trainer.save_checkpoint(partial)
        self._written = time.monotonic()


class MetricsFile(Logger):
    """metrics.csv, gates.csv: a row per logged step, whole at any moment, rewound by a resume."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as handle:
                self.rows = list(csv.DictReader(handle))

    @property
    def name(self) -> str:
        """Return the file's name."""
        return self.path.name

    @property
    def version(self) -> str:
        """Return nothing: a run has one file."""
        return ""

    def rewind(self, step: int) -> None:
        """Forget what was logged of the steps from `step` on, counted from 0."""
        self.rows = [row for row in self.rows if int(row["step"]) < step]

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row, or add to the last row of the same step."""
        if self.rows and int(self.rows[-1]["step"]) == (step or 0):
            self.rows[-1].update(metrics)
        else:
            self.rows.append({"step": step or 0, **metrics})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Ignore them: config.yaml has all."""

    def save(self) -> None:
        """Write all rows, columns in order of first appearance; no file without rows."""
        if not self.rows and not self.path.exists():
            return
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())
