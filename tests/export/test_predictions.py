"""What the core graph puts on top of the towers is what training and evaluation compute."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.core import Predictions
from export.parity import _apart
from recsys_moe.predictions import amounts, probabilities
from recsys_moe.spec import FeatureSpec, Task

SPEC = FeatureSpec(
    dataset="toy",
    columns=(),
    tables=(),
    features=(),
    tasks=(
        Task(name="watch", label="watch", kind="regression", mean=-40.0, scale=0.02),
        Task(name="click", label="click", keep_rate=0.05),
        Task(name="sale", label="sale", space="click"),
        Task(
            name="spend",
            label="spend",
            space="sale",
            kind="regression",
            transform="log1p",
            mean=1.5,
            scale=2.0,
        ),
    ),
    train_rows=1,
)


class Towers(nn.Module):
    """Hand the numbers through as the towers' outputs."""

    def forward(self, codes: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        return dict(zip(SPEC.task_names, numbers.unbind(1), strict=True))


def test_the_graph_computes_probabilities_and_amounts_as_evaluation_does() -> None:
    z = torch.randn(1000, 4, generator=torch.Generator().manual_seed(1)) * 5
    z[0, 3], z[1, 3] = -1e30, 1e30  # where the tower goes mad, the amount stays a number

    found = Predictions(Towers(), SPEC)(torch.zeros(1000, 0), z)

    names = [*SPEC.predictions, *SPEC.logits]
    answers = {name: value.numpy() for name, value in zip(names, found, strict=True)}
    towers = dict(zip(SPEC.task_names, z.double().numpy().T, strict=True))
    expected = {f"p_{name}": p for name, p in probabilities(SPEC, towers).items()}
    expected |= {f"y_{name}": y for name, y in amounts(SPEC, towers).items()}
    for name, value in expected.items():
        np.testing.assert_allclose(answers[name], value, rtol=1e-4, atol=1e-6)
    assert answers["y_spend"].min() == 0
    assert np.isfinite(answers["y_spend"]).all()
    assert answers["y_watch"].min() < 0
    np.testing.assert_allclose(answers["logit_click"], z[:, 1] + np.log(0.05), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("unit", "scale"), [(1.0, 0.5), (1e6, 0.5e-6)])
def test_the_gap_of_an_amount_does_not_depend_on_its_unit(unit: float, scale: float) -> None:
    task = Task(name="a", label="a", kind="regression", scale=scale)
    got, wanted = np.array([1.5, np.nan]) * unit, np.array([1.0, 1.0]) * unit
    apart = _apart(got, wanted, task)
    assert apart[0] == pytest.approx(0.25)
    assert np.isnan(apart[1])
