"""Trained on a tenth of the negatives, a model's mean prediction is still the true rate."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from pipelines.dataset.roles import Sampling
from pipelines.rows.sampling import kept, sampling_weight
from recsys_moe import losses
from recsys_moe.batch import Batch
from recsys_moe.predictions import probabilities
from recsys_moe.spec import Column, FeatureSpec, Task

ROWS, RATE = 200_000, 0.1


class Logistic(nn.Module):
    """One linear logit for each task."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, num_tasks)

    def forward(self, numbers_B4: torch.Tensor) -> torch.Tensor:
        return self.linear(numbers_B4)


def simulate() -> tuple[np.ndarray, pl.DataFrame]:
    """Numbers of impressions, with clicks of about 4 % and sales among them."""
    draw = np.random.default_rng(8)
    x = draw.normal(size=(ROWS, 4))
    p_click = 1 / (1 + np.exp(4 - x @ [1.0, -0.5, 0.25, 0.0]))
    p_sale = 1 / (1 + np.exp(1 - x @ [-0.5, 0.0, 0.5, 1.0]))
    click = draw.random(ROWS) < p_click
    sale = click & (draw.random(ROWS) < p_sale)
    frame = pl.DataFrame({"row": range(ROWS), "click": click, "sale": sale})
    return x, frame.with_columns(pl.col("click", "sale").cast(pl.Float32))


def spec_of(keep_rate: float) -> FeatureSpec:
    return FeatureSpec(
        dataset="toy",
        columns=(Column(name="a", type="string"),),
        tables=(),
        features=(),
        tasks=(
            Task(name="click", label="click", keep_rate=keep_rate),
            Task(name="sale", label="sale", space="click"),
        ),
        train_rows=ROWS,
    )


def trained(x: np.ndarray, rows: pl.DataFrame, weight: pl.Expr) -> dict[str, np.ndarray]:
    """Return the logits of all of x from a model that learnt on some rows of it."""
    torch.manual_seed(0)
    spec, model = spec_of(1.0), Logistic(2)
    loss = losses.auto(spec)
    numbers = torch.from_numpy(x).float()
    mine = numbers[torch.from_numpy(rows["row"].to_numpy().copy())]
    batch = Batch(
        codes=torch.zeros(len(rows), 0),
        numbers=mine,
        labels={task: torch.from_numpy(rows[task].to_numpy().copy()) for task in spec.task_names},
        known={
            "click": torch.from_numpy(rows.select(weight).to_series().to_numpy().copy()),
            "sale": torch.from_numpy(rows["click"].to_numpy().copy()),
        },
        weights=torch.ones(len(rows)),
    )
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        logits = dict(zip(spec.task_names, model(batch.numbers).unbind(1), strict=True))
        total = torch.stack(list(loss(logits, batch).values())).sum()
        total.backward()
        return total

    optimizer.step(step)
    with torch.no_grad():
        logits_BT = model(numbers).double().numpy()
    return dict(zip(spec.task_names, logits_BT.T, strict=True))


@pytest.fixture(scope="module")
def simulated() -> tuple[np.ndarray, pl.DataFrame]:
    return simulate()


@pytest.mark.parametrize("correct", ["shift", "weight"])
def test_the_mean_prediction_is_the_rate_again(
    correct: str, simulated: tuple[np.ndarray, pl.DataFrame]
) -> None:
    x, rows = simulated
    sampling = Sampling(task="click", keep_rate=RATE, correct=correct, seed=1)
    thin = rows.filter(kept(sampling, pl.col("click"), ["row"]))
    assert thin.height < 0.2 * ROWS

    logits = trained(x, thin, sampling_weight(sampling, pl.col("click")))

    rates = {"click": rows["click"].mean(), "click_and_sale": rows["sale"].mean()}
    corrected = probabilities(spec_of(RATE if correct == "shift" else 1.0), logits)
    for name, rate in rates.items():
        assert abs(corrected[name].mean() - rate) / rate < 0.02
    sold = corrected["sale"][rows["click"].to_numpy() == 1]
    clicks_sold = rows["sale"].sum() / rows["click"].sum()
    assert sold.mean() == pytest.approx(clicks_sold, rel=0.02)
    if correct == "shift":
        untouched = probabilities(replace(spec_of(RATE), tasks=spec_of(1.0).tasks), logits)
        assert untouched["click"].mean() / rates["click"] > 4
        assert untouched["click_and_sale"].mean() / rates["click_and_sale"] > 2
