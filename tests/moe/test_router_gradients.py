"""The gradient of every router is the derivative of its weights and probabilities."""

import pytest
import torch

from recsys_moe.moe.router_dselect_k import DSelectKRouter
from tests.moe.router_cases import BATCHWISE, ROW_BY_ROW, random, rows

ALL = ROW_BY_ROW | BATCHWISE
GRADCHECKED = [name for name in ROW_BY_ROW if name != "union budget"]


@pytest.mark.parametrize("name", [*GRADCHECKED, "soft moe", "expert choice"])
@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_is_the_derivative(name: str, training: bool) -> None:
    router = random(ALL[name], seed=3).double().train(training)
    x = rows(4, seed=2, dtype=torch.float64).requires_grad_()
    names = [name for name, _ in router.named_parameters()]

    def weights(x: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(0)
        routing = torch.func.functional_call(router, dict(zip(names, values, strict=True)), (x,))
        return routing.dense(), routing.probs

    values = [parameter.detach().requires_grad_() for parameter in router.parameters()]

    assert torch.autograd.gradcheck(weights, (x, *values))


def test_dselect_k_has_a_derivative_at_the_ends_of_its_bits() -> None:
    router = DSelectKRouter(8, 4, 2, gamma=0.5).double()
    with torch.no_grad():
        router.bits.weight.zero_()
        router.bits.bias.copy_(torch.tensor([0.25, -0.25, 0.24, 1.0]))

    def weights(bias: torch.Tensor) -> torch.Tensor:
        values = {"bits.bias": bias}
        return torch.func.functional_call(router, values, (rows(3).double(),)).dense()

    bias = router.bits.bias.detach().requires_grad_()

    assert torch.autograd.gradcheck(weights, (bias,), eps=1e-7, atol=1e-6)
