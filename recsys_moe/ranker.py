"""The LightningModule: steps, logging and optimisers, and not one parameter of its own."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from recsys_moe.batch import Batch
from recsys_moe.errors import RecsysMoeError
from recsys_moe.gate_balance import GateBalance
from recsys_moe.gate_watch import GateWatch
from recsys_moe.predictions import evaluate_outputs, monitored
from recsys_moe.spec import FeatureSpec

MakeOptimizer = Callable[[nn.Module, int], tuple[Optimizer, LRScheduler]]


class Ranker(LightningModule):
    """Train a multi-task model. What is learnt lives in `model`; this class only drives it."""

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        spec: FeatureSpec,
        make_optimizer: MakeOptimizer,
        balance: GateBalance,
        watch: GateWatch,
        *,
        num_steps: int,
        log_every_steps: int,
    ) -> None:
        """Take what drives the training.

        `balance` and `watch` are those of the model's gates; neither has a part in its weights.
        `num_steps` is that of the whole training. Asking the trainer for it (its
        `estimated_stepping_batches`) would make Lightning start the loader before a checkpoint's
        position reaches it, and a resumed epoch would begin anew.
        """
        super().__init__()
        self.model, self.loss, self.spec = model, loss, spec
        self.make_optimizer, self.balance, self.watch = make_optimizer, balance, watch
        self.num_steps, self.log_every_steps = num_steps, log_every_steps
        self._history: list[Tensor] = []
        self._seen: list[tuple[dict[str, Tensor], Batch]] = []

    def on_fit_start(self) -> None:
        """Tell the gates' helpers where they are; with several processes they add up over all."""
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        group = dist.group.WORLD if together else None
        micro_batches = self.trainer.accumulate_grad_batches
        self.balance.start(self.device, num_micro_batches=micro_batches, group=group)
        self.watch.start(self.device, group)

    def on_train_start(self) -> None:
        """Stay stopped where a collapse of the gates had stopped the run."""
        self.trainer.should_stop |= self.watch.collapsed is not None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of all losses; their history stays on the device until logged."""
        logits, gated = self.model.routed(batch.codes, batch.numbers)  # type: ignore[operator]
        losses = [*self.loss(logits, batch).values(), *self.balance.losses(gated).values()]
        losses_L = torch.stack(losses)
        self._history.append(losses_L.detach())
        self.watch.update(gated)
        return losses_L.sum()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Move the gates' biases once a step, whatever the number of batches in it."""
        self.balance.step_done()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the means since the last row, every `log_every_steps` steps; refuse NaN."""
        batches = self.log_every_steps * self.trainer.accumulate_grad_batches
        if len(self._history) < batches and not self.trainer.is_last_batch:
            return
        means = torch.stack(self._history).mean(0).tolist()
        self._history.clear()
        names = [f"train/loss/{task}" for task in self.spec.task_names]
        names += [f"train/balance/{name}" for name in self.balance.names]
        if not np.isfinite(means).all():
            raise RecsysMoeError(
                f"training, step {self.global_step}: wanted finite losses, "
                f"got {dict(zip(names, means, strict=True))}. A lower optimizer.lr may help."
            )
        rates = cast(list[float], self.lr_schedulers().get_last_lr())  # type: ignore[union-attr]
        row = {**dict(zip(names, means, strict=True)), "lr": rates[-1]}
        row |= self.watch.log(self.global_step - 1)
        for logger in self.loggers:
            logger.log_metrics(row, self.global_step - 1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep logits and labels for the metrics of the whole split."""
        self._seen.append((self._logits(batch), batch))

    def on_validation_epoch_end(self) -> None:
        """Log every output's metrics in its own space, and their means over the tasks.

        The mean of `loss` is over all tasks: what is log loss for one and error for another.
        """
        results = evaluate_outputs(
            self.spec,
            {task: _joined([logits[task] for logits, _ in self._seen]) for task in self._tasks},
            {
                task: _joined([batch.labels[task] for _, batch in self._seen])
                for task in self._tasks
            },
            {task: _joined([batch.known[task] for _, batch in self._seen]) for task in self._tasks},
        )
        self.watch.close_epoch(self.current_epoch, self._seen[0][1])
        self._seen.clear()
        for task in self._tasks:
            results[task].setdefault("loss", results[task].get("log_loss"))
        for metric, outputs in monitored(self.spec).items():
            values = {name: _number(results[name][metric]) for name in outputs}
            for name, value in values.items():
                self.log(f"valid/{metric}/{name}", value)
            mean = np.mean([value for name, value in values.items() if name in self._tasks])
            self.log(f"valid/{metric}", float(mean))

    def on_train_epoch_end(self) -> None:
        """Stop after an epoch whose gates collapsed, if that was asked for."""
        self.trainer.should_stop |= self.watch.collapsed is not None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is not logged yet: a resumed run logs what an undisturbed one does."""
        checkpoint["loss_history"] = [losses_L.cpu() for losses_L in self._history]
        checkpoint["gates"] = self.watch.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what is not logged yet."""
        self._history = [losses_L.to(self.device) for losses_L in checkpoint["loss_history"]]
        self.watch.load_state_dict(checkpoint["gates"])

    def configure_optimizers(self) -> Any:
        """Hand the module to the optimiser's builder, which may treat tables in their own way."""
        optimizer, schedule = self.make_optimizer(self.model, self.num_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    @property
    def _tasks(self) -> tuple[str, ...]:
        return self.spec.task_names

    def _logits(self, batch: Batch) -> dict[str, Tensor]:
        return cast(dict[str, Tensor], self.model(batch.codes, batch.numbers))


def _joined(parts: list[Tensor]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return torch.cat(parts).double().cpu().numpy()


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
