"""Drive Lightning's Trainer over one run folder: from nothing, or from last.ckpt on."""

import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger

from recsys_moe.checkpoint import read_checkpoint
from recsys_moe.datamodule import DataModule
from recsys_moe.errors import RequestError
from recsys_moe.progress import say
from recsys_moe.ranker import Ranker
from recsys_moe.run_files import Checkpoints, MetricsFile

BAR_STEPS = 20
"""Steps between two drawings of the progress bar."""


def make_trainer(
    configured: Callable[..., Trainer],
    output: Path,
    checkpoints: Checkpoints,
    *,
    max_epochs: int,
) -> Trainer:
    """Add to the configured trainer what every run has; nothing is written yet."""
    _quieten()
    metrics_file = MetricsFile(output / "metrics.csv")
    checkpoints.logs.append(metrics_file)
    callbacks: list[Callback] = [checkpoints]
    if sys.stdout.isatty():
        callbacks.append(RichProgressBar(refresh_rate=BAR_STEPS))
    return configured(
        max_epochs=max_epochs,
        callbacks=callbacks,
        logger=[metrics_file, TensorBoardLogger(output, name="tensorboard", version="")],
        default_root_dir=output,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stdout.isatty(),
    )


def fit(ranker: Ranker, data: DataModule, trainer: Trainer, output: Path) -> None:
    """Train to the end, continuing from `output/last.ckpt` if it is there.

    Raises:
        CollapseError: The gates collapsed, and that was to end the run; last.ckpt is there.
    """
    last = output / "last.ckpt"
    if last.exists():
        step = read_checkpoint(last)["global_step"]
        say("train", f"continues from step {step:,} of {last}")
    started = time.monotonic()
    checkpoint = str(last) if last.exists() else None
    trainer.fit(ranker, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    seconds = time.monotonic() - started
    say("train", f"{trainer.global_step:,} steps in all, {seconds:.1f} s in this session")
    ranker.watch.finish()


def finish_untrained(
    ranker: Ranker, data: DataModule, trainer: Trainer, checkpoints: Checkpoints
) -> None:
    """Evaluate a model as it is, and write it as the run's best checkpoint."""
    trainer.validate(ranker, datamodule=data, verbose=False)
    checkpoints.keep(trainer)


def check_device(accelerator: str, devices: int) -> None:
    """Refuse devices that are not there before anything is written or computed."""
    if devices != 1:
        raise RequestError("trainer.devices", wanted="1 (a run uses one device)", got=str(devices))
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise RequestError(
            "trainer.accelerator=gpu",
            wanted="a CUDA device",
            got="none (use trainer=cpu to train on the CPU)",
        )


def _quieten() -> None:
    """Keep Lightning's tips, advertisements and advice off the streams; our own lines stay."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric|torch")
