"""The optimiser and its schedule: embedding tables and dense weights learn at their own pace."""

import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

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
) -> tuple[AdamW, LambdaLR]:
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
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, Embeddings)
        for parameter in module.parameters()
    }
    groups: dict[str, list[nn.Parameter]] = {"tables": [], "weights": [], "biases": []}
    for name, parameter in model.named_parameters():
        is_bias = "bias" in name
        kind = "tables" if id(parameter) in tables else "biases" if is_bias else "weights"
        groups[kind].append(parameter)
    optimizer = AdamW(
        [
            {"params": groups["tables"], "lr": table_lr, "weight_decay": table_weight_decay},
            {"params": groups["weights"], "lr": lr, "weight_decay": weight_decay},
            {"params": groups["biases"], "lr": lr, "weight_decay": 0.0},
        ],
        fused=True,
    )
    num_warmup = max(1, round(warmup_share * num_steps))

    def rate(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        left = (step - num_warmup) / max(1, num_steps - num_warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, left)))

    return optimizer, LambdaLR(optimizer, rate)
