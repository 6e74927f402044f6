"""Drive Lightning's Trainer over one run folder: from nothing, or from last.ckpt on."""

import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from recsys_moe.checkpoint import read_checkpoint
from recsys_moe.datamodule import DataModule
from recsys_moe.errors import RequestError
from recsys_moe.progress import say
from recsys_moe.ranker import Ranker
from recsys_moe.run_files import Checkpoints, MetricsFile, RewindMetrics


def fit(
    ranker: Ranker,
    data: DataModule,
    output: Path,
    make_trainer: Callable[..., Trainer],
    checkpoints: Checkpoints,
    *,
    max_epochs: int,
) -> None:
    """Train to the end, continuing from `output/last.ckpt` if it is there."""
    _quieten()
    metrics_file = MetricsFile(output / "metrics.csv")
    board = TensorBoardLogger(output, name="", version="tensorboard")
    trainer = make_trainer(
        max_epochs=max_epochs,
        callbacks=[checkpoints, RewindMetrics(metrics_file)],
        logger=[metrics_file, board],
        default_root_dir=output,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stdout.isatty(),
    )
    last = output / "last.ckpt"
    if last.exists():
        step = read_checkpoint(last)["global_step"]
        say("train", f"continues from step {step:,} of {last}")
    started = time.monotonic()
    trainer.fit(
        ranker, datamodule=data, ckpt_path=str(last) if last.exists() else None, weights_only=True
    )
    metrics_file.save()
    seconds = time.monotonic() - started
    say("train", f"{trainer.global_step:,} steps in all, {seconds:.1f} s in this session")


def check_device(accelerator: str, devices: int) -> None:
    """Refuse a GPU that is not there before anything is written or computed."""
    if accelerator not in ("gpu", "cuda"):
        return
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < devices:
        raise RequestError(
            f"trainer.accelerator={accelerator}",
            wanted=f"{devices} CUDA device{'s' * (devices != 1)}",
            got=f"{found or 'none'} (use trainer=cpu to train on the CPU)",
        )


def _quieten() -> None:
    """Keep Lightning's tips, advertisements and advice off the streams; our own lines stay."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric|torch")
