"""The optimiser and its schedule: embedding tables and dense weights learn at their own pace."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from recsys_moe.errors import RequestError
from recsys_moe.modules.embeddings import Embeddings


def adamw(
    model: nn.Module,
    num_steps: int,
    *,
    lr: float,
    table_lr: float,
    weight_decay: float,
    table_weight_decay: float,
    warmup_share: float,
) -> tuple[Optimizer, LambdaLR]:
    """Build AdamW (Loshchilov and Hutter, ICLR 2019) with linear warm-up and a cosine to zero.

    Args:
        model: The model to train; parameters of `Embeddings` modules are tables.
        num_steps: Steps of the whole training; the learning rate ends at zero there.
        lr: Highest learning rate of dense weights.
        table_lr: Highest learning rate of embedding tables.
        weight_decay: Decoupled decay of dense matrices; biases have none.
        table_weight_decay: Decoupled decay of embedding tables.
        warmup_share: Share of the steps in which the rate rises from near zero.
    """
    tables, dense = _split(model, lr, weight_decay)
    kept = _undecayed(model)
    rows = {
        "params": [table for table in tables if id(table) not in kept],
        "lr": table_lr,
        "weight_decay": table_weight_decay,
    }
    still = [table for table in tables if id(table) in kept]
    if still:
        dense.append({"params": still, "lr": table_lr, "weight_decay": 0.0})
    return _scheduled(AdamW([rows, *dense], fused=True), num_steps, warmup_share)


def adamw_and_sgd(
    model: nn.Module,
    num_steps: int,
    *,
    lr: float,
    table_lr: float,
    weight_decay: float,
    warmup_share: float,
) -> tuple[Optimizer, LambdaLR]:
    """Build AdamW for the dense weights and plain SGD for the tables, on one schedule.

    Adam gives a row seen five times five full steps, because its second moment is as small as its
    gradient; SGD gives a row steps in proportion to its evidence, and rare rows stay near zero. A
    row's gradient is that of a mean over the batch: `table_lr` grows with the batch size
    (docs/decisions/tables-by-sgd.md).
    """
    tables, dense = _split(model, lr, weight_decay)
    pair = Together([SGD([{"params": tables, "lr": table_lr}]), AdamW(dense, fused=True)])
    return _scheduled(pair, num_steps, warmup_share)


class Together(Optimizer):
    """Several optimisers that step, are scheduled and are saved as one."""

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.param_groups: list[dict[str, Any]] = [
            group for part in parts for group in part.param_groups
        ]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every part once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the parts' states in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hand each part its own state, and go on sharing its groups."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def _split(
    model: nn.Module, lr: float, weight_decay: float
) -> tuple[list[nn.Parameter], list[dict[str, Any]]]:
    """Return the tables, and the dense weights as groups: matrices with decay, the rest without.

    The rest are biases, and what a module names in its `no_weight_decay`. What needs no gradient
    is in none of them.
    """
    tables = {
        id(parameter): parameter
        for module in model.modules()
        if isinstance(module, Embeddings)
        for parameter in module.parameters()
    }
    kept = _undecayed(model)
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if id(parameter) not in tables and parameter.requires_grad:
            (biases if "bias" in name or id(parameter) in kept else weights).append(parameter)
    return [table for table in tables.values() if table.requires_grad], [
        {"params": weights, "lr": lr, "weight_decay": weight_decay},
        {"params": biases, "lr": lr, "weight_decay": 0.0},
    ]


def _undecayed(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that some module names in its `no_weight_decay`."""
    return {
        id(getattr(module, name))
        for module in model.modules()
        for name in getattr(module, "no_weight_decay", ())
    }


def _scheduled(
    optimizer: Optimizer, num_steps: int, warmup_share: float
) -> tuple[Optimizer, LambdaLR]:
    for group in optimizer.param_groups:
        for name in ("lr", "weight_decay"):
            _check_rate(f"optimizer.{name}", group[name])
    _check_rate("optimizer.warmup_share", warmup_share)
    num_warmup = max(1, round(warmup_share * num_steps))

    def rate(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        left = (step - num_warmup) / max(1, num_steps - num_warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, left)))

    return optimizer, LambdaLR(optimizer, rate)


def _check_rate(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise RequestError(name, wanted="a number of at least 0", got=repr(value))
