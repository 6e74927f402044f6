"""Logits and labels -> one loss per task, over the rows that say something of it.

A binary task has a binary cross-entropy, a regression the squared error of its standardised target,
all in float32, averaged over rows with `known * sample weight` and times the task's weight. `known`
is 0 where a label is unknown, which never counts as a negative, and else how much it counts.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_moe.batch import Batch
from recsys_moe.errors import RequestError
from recsys_moe.spec import FeatureSpec, Task


class TaskLosses(nn.Module):
    """Learn each task in its own space, or a chained binary one over the entire space.

    In its own space, a task's loss is the mean over the rows that are positives of every task
    above it. Over the entire space it is a mean over all rows of two terms: that of the product of
    the chain, log p(a and b) = log p(a) + log p(b) (ESMM, Ma et al., SIGIR 2018, eq. 4), by which
    P(b given a) also learns from the rows nobody clicked, and its own, 0 outside its space, by
    which it learns what tells a converting click from another. Together they rank better than
    either (docs/decisions/entire-space.md). A regression is learnt in its own space always.

    Where labels have weights, those of a task and of the tasks above it multiply.
    """

    def __init__(self, spec: FeatureSpec, *, entire_space: bool) -> None:
        super().__init__()
        self.tasks: tuple[Task, ...] = spec.tasks
        self.chains = {task: spec.chain(task) for task in spec.task_names}
        self.entire_space = entire_space

    def forward(self, logits: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the tasks' losses, scalars, already times their weights."""
        losses = {}
        for task in self.tasks:
            chain = self.chains[task.name]
            counts_B = _own_weight(batch, chain)
            total = (_own_loss(logits, batch, task) * counts_B * batch.weights).sum()
            if self.entire_space and len(chain) > 1 and task.kind == "binary":
                product_B, counts_B = _chain_loss(logits, batch, chain)
                total = total + (product_B * batch.weights).sum()
            rows = (counts_B * batch.weights).sum().clamp(min=1e-6)
            losses[task.name] = task.weight * total / rows
        return losses


def per_task(spec: FeatureSpec) -> TaskLosses:
    """Learn every task in its own space."""
    return TaskLosses(spec, entire_space=False)


def entire_space(spec: FeatureSpec) -> TaskLosses:
    """Learn chained tasks over all rows; refused where no task is chained."""
    if all(task.space == "all" or task.kind == "regression" for task in spec.tasks):
        raise RequestError(
            "loss=entire_space",
            wanted="a binary task whose space is another task",
            got=f"the tasks {', '.join(spec.task_names)}",
        )
    return TaskLosses(spec, entire_space=True)


def auto(spec: FeatureSpec) -> TaskLosses:
    """Learn over the entire space where a task's space is another task, per task elsewhere."""
    return TaskLosses(spec, entire_space=True)


def standardised(task: Task, labels_B: Tensor) -> Tensor:
    """Return what a regression's tower predicts, (f(y) - mean) * scale, float32 like the labels.

    In float64 on the way: labels far from 0 keep their differences.
    """
    y_B = labels_B.double()
    y_B = torch.log1p(y_B) if task.transform == "log1p" else y_B
    return ((y_B - task.mean) * task.scale).float()


def _own_loss(logits: dict[str, Tensor], batch: Batch, task: Task) -> Tensor:
    logit_B, labels_B = logits[task.name].float(), batch.labels[task.name]
    if task.kind == "regression":
        return (logit_B - standardised(task, labels_B)).square()
    return F.binary_cross_entropy_with_logits(logit_B, labels_B, reduction="none")


def _own_weight(batch: Batch, chain: tuple[str, ...]) -> Tensor:
    """Return how much each row says of the chain's last task: nothing outside its space."""
    *above, task = chain
    weight_B = batch.known[task]
    for parent in above:
        weight_B = weight_B * batch.known[parent] * batch.labels[parent]
    return weight_B


def _chain_loss(
    logits: dict[str, Tensor], batch: Batch, chain: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """Return the loss of a product times its weight, and that weight.

    It is known as soon as one factor is a known negative, and weighs what the factors up to there
    weigh together.
    """
    log_p_B = torch.stack([F.logsigmoid(logits[task].float()) for task in chain]).sum(0)
    log_rest_B = torch.log(-torch.expm1(log_p_B.clamp(max=-1e-6)))  # log(1 - p)
    positive_B = torch.stack([batch.known[task] * batch.labels[task] for task in chain]).prod(0)
    open_B = torch.ones_like(positive_B)  # every factor so far a known positive
    negative_B = torch.zeros_like(positive_B)
    for task in chain:
        negative_B = negative_B + open_B * batch.known[task] * (1 - batch.labels[task])
        open_B = open_B * batch.known[task] * batch.labels[task]
    loss_B = -(positive_B * log_p_B + negative_B * log_rest_B)
    return loss_B, positive_B + negative_B
