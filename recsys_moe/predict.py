"""What a model's towers put out for all rows of a split, beside the labels."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from recsys_moe.datamodule import Split

Columns = dict[str, NDArray[np.float64]]


@torch.no_grad()
def predict_split(
    model: nn.Module, data: Split, batch_rows: int
) -> tuple[Columns, Columns, Columns]:
    """Return logits, labels and label weights per task, float64 (rows,), in the split's order.

    Logits are the towers' own: `predictions.probabilities` corrects them for how train was sampled.
    """
    tasks = data.spec.task_names
    logits = {task: np.empty(data.num_rows) for task in tasks}
    start = 0
    for batch in data.batches(batch_rows):
        rows = slice(start, start + len(batch.weights))
        for task, logit_B in model(batch.codes, batch.numbers).items():
            logits[task][rows] = logit_B.double().numpy()
        start = rows.stop
    labels = {task: data.labels[:, i].astype(np.float64) for i, task in enumerate(tasks)}
    known = {task: data.known[:, i].astype(np.float64) for i, task in enumerate(tasks)}
    return logits, labels, known
