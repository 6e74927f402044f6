"""The selection bias evens out the load and never touches a weight."""

import pytest
import torch

from recsys_moe.moe.router_sigmoid import SigmoidRouter
from tests.moe.router_cases import VISIBLE, random, rows


def max_violation(counts: torch.Tensor) -> float:
    return float((counts.max() - counts.mean()) / counts.mean())


def skewed() -> SigmoidRouter:
    torch.manual_seed(0)
    router = SigmoidRouter(16, 8, 2, bias=True)
    with torch.no_grad():
        router.linear.bias.copy_(torch.linspace(1.0, -1.0, 8))
    return router


def test_the_bias_evens_out_a_skewed_router() -> None:
    router = skewed()
    test_set = torch.randn(8192, 16)
    before = max_violation(router(test_set).counts())
    with torch.no_grad():
        for _ in range(2000):
            router.update_bias(router(torch.randn(512, 16)).counts(), rate=1e-3)

    after = max_violation(router(test_set).counts())

    assert before > 1.0
    assert after <= before / 4


def test_weights_do_not_see_the_bias() -> None:
    router, x = random(lambda _: SigmoidRouter(8, 6, 3)), rows(500)
    before = router(x)
    with torch.no_grad():
        router.selection_bias.add_(torch.linspace(0, 0.3, 6))
    after = router(x)
    same = (before.chosen() == after.chosen()).all(1)

    assert 0.2 < same.float().mean() < 0.9
    torch.testing.assert_close(after.dense()[same], before.dense()[same], rtol=0, atol=1e-7)
    torch.testing.assert_close(after.probs, before.probs, rtol=0, atol=0)


def test_the_bias_is_state_and_no_parameter() -> None:
    router = SigmoidRouter(8, 6, 3)

    assert "selection_bias" in router.state_dict()
    assert [name for name, _ in router.named_parameters()] == ["linear.weight"]


def test_one_step_moves_by_the_rate_towards_the_mean() -> None:
    router = SigmoidRouter(8, 4, 2)

    router.update_bias(torch.tensor([10, 0, 5, 5]), rate=0.5)

    assert router.selection_bias.tolist() == [-0.5, 0.5, 0, 0]


def test_micro_batches_count_as_one_step() -> None:
    router, x = random(lambda _: SigmoidRouter(8, 6, 2)), rows(90)
    mask = torch.arange(90) % 4 > 0

    parts = sum(router(x[a : a + 30], mask[a : a + 30]).counts() for a in (0, 30, 60))

    assert torch.equal(parts, router(x).counts(mask))


def test_an_expert_out_of_sight_keeps_its_bias() -> None:
    router = SigmoidRouter(8, 6, 2, visible=VISIBLE)

    router.update_bias(torch.tensor([9.0, 100, 1, 2, 100, 0]), rate=1.0)

    assert router.selection_bias.tolist() == [-1, 0, 1, 1, 0, 1]


def test_scores_that_underflow_still_have_weights() -> None:
    router = SigmoidRouter(1, 3, 2, bias=True)
    with torch.no_grad():
        router.linear.bias.copy_(torch.tensor([-200.0, -200.0, -201.0]))
        router.linear.weight.zero_()

    weights = router(torch.zeros(1, 1)).weights

    assert weights.tolist() == [pytest.approx([0.5, 0.5])]
