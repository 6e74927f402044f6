"""Routers with more experts and with fewer: what each decides, beside the formulas."""

from typing import Any

import pytest
import torch

from recsys_moe.errors import RequestError
from recsys_moe.moe.router_base import LinearRouter
from recsys_moe.moe.router_sigmoid import SigmoidRouter
from recsys_moe.moe.router_softmax import SoftmaxRouter
from recsys_moe.moe.router_top_k import TopKRouter
from recsys_moe.moe.router_top_p import TopPRouter
from recsys_moe.surgery.opening import open_gently
from tests.moe.router_cases import BATCHWISE, ROW_BY_ROW, STATIC

FREE = {
    "softmax": lambda: SoftmaxRouter(8, 6, temperature=0.7),
    "top_k": lambda: TopKRouter(8, 6, 2),
    "switch": lambda: TopKRouter(8, 6, 1, renormalise=False),
    "top_p": lambda: TopPRouter(8, 6, 0.6, max_experts=4),
    "sigmoid": lambda: SigmoidRouter(8, 6, 3, scale=2.0),
}


def made(name: str) -> Any:
    torch.manual_seed(3)
    router = FREE[name]().eval()
    if name == "sigmoid":
        router.selection_bias.normal_(std=0.1)
    return router


def rows(number: int = 500, seed: int = 1) -> torch.Tensor:
    return torch.randn(number, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FREE)
def test_a_map_of_its_own_is_as_good_as_a_longer_one(name: str) -> None:
    """Two additions route as one router whose matrix has all rows from the start."""
    router, x_ND = made(name), rows()
    router.grow(2)
    router.grow(1)
    linears = [router.linear, *router.added]
    whole = made(name)
    whole.linear.weight = torch.nn.Parameter(torch.cat([each.weight for each in linears]))
    biases = [
        torch.zeros(each.out_features) if each.bias is None else each.bias for each in linears
    ]
    whole.linear.bias = torch.nn.Parameter(torch.cat(biases))
    whole.num_experts = 9
    if name == "sigmoid":
        router.added_bias_0.normal_(std=0.1)
        parts = [router.selection_bias, router.added_bias_0, router.added_bias_1]
        whole.selection_bias = torch.cat(parts)

    found, expected = router(x_ND), whole(x_ND)

    assert router.num_experts == found.num_experts == 9
    torch.testing.assert_close(found.dense(), expected.dense(), rtol=0, atol=1e-6)
    assert (found.dense()[:, 6:].sum(0) > 0).all()


@pytest.mark.parametrize("name", FREE)
def test_a_closed_addition_changes_no_bit(name: str) -> None:
    router, x_ND = made(name), rows()
    before = router(x_ND)
    router.grow(4, is_open=False)

    after = router(x_ND)

    assert after.num_experts == router.num_experts == 6
    assert torch.equal(after.dense(), before.dense())


@pytest.mark.parametrize("name", FREE)
def test_kept_experts_are_routed_by_their_own_logits(name: str) -> None:
    """Six experts and three added ones; 1 and 3 go, and the first and last of the added."""
    router, x_ND, kept = made(name), rows(), [0, 2, 4, 5, 7]
    router.grow(3)
    before = router(x_ND)
    if name == "sigmoid":
        router.added_bias_0.normal_(std=0.1)
        biases = torch.cat([router.selection_bias, router.added_bias_0])[kept]

    router.keep(kept)

    after = router(x_ND)
    torch.testing.assert_close(after.logits, before.logits[:, kept], rtol=0, atol=1e-6)
    assert router.num_experts == router.num_visible == len(kept)
    if name == "sigmoid":
        assert torch.equal(router.biases(), biases)
    if name == "softmax":
        rest = before.weights[:, kept]
        torch.testing.assert_close(after.weights, rest / rest.sum(1, keepdim=True))


@pytest.mark.parametrize("name", ["top_k", "switch", "sigmoid"])
def test_rows_that_did_not_choose_what_is_removed_choose_as_before(name: str) -> None:
    """With the same weights; Switch's are shares of all experts, and so grow alike."""
    router, x_ND = made(name), rows()
    before = router(x_ND)
    untouched_N = (before.index != 1).all(1)

    router.keep([0, 2, 3, 4, 5])

    after = router(x_ND)
    new_number = torch.tensor([0, -1, 1, 2, 3, 4])
    assert torch.equal(new_number[before.index[untouched_N]], after.index[untouched_N])
    scale_N1 = 1 / (1 - before.probs[:, 1:2]) if name == "switch" else torch.ones(len(x_ND), 1)
    torch.testing.assert_close(after.weights[untouched_N], (before.weights * scale_N1)[untouched_N])
    assert 50 < untouched_N.sum() < 450


def test_too_few_experts_are_refused() -> None:
    with pytest.raises(RequestError, match="k: wanted 1 to 1"):
        made("top_k").keep([3])


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", FREE)
def test_added_experts_begin_with_their_share(name: str, count: int) -> None:
    """Of a dense gate no row has more, and one has just that; of others as many rows use one."""
    router, x_ND = made(name), rows()
    router.grow(count)

    open_gently(router, x_ND, since=0, share=0.1)

    share_N = router(x_ND).dense()[:, 6:].sum(1)
    if name == "softmax":
        torch.testing.assert_close(share_N.max(), torch.tensor(0.1))
        assert share_N.min() > 0
    else:
        low, high = (0.095, 0.105) if count == 1 else (0.03, 0.15)  # experts beside each other
        assert low < (share_N > 0).float().mean() < high
        assert (router(x_ND).dense()[:, 6:] > 0).any(0).all()


@pytest.mark.parametrize("name", (ROW_BY_ROW | BATCHWISE | STATIC).keys())
def test_every_router_takes_more_experts_or_says_why_not(name: str) -> None:
    router = (ROW_BY_ROW | BATCHWISE | STATIC)[name](None)
    router = getattr(router, "router", router)
    if router.fixed_because or getattr(router, "num_groups", 1) > 1:
        for change in (lambda: router.grow(1), lambda: router.keep([0, 1, 2])):
            with pytest.raises(RequestError, match="router: wanted one whose experts can become"):
                change()
    else:
        assert isinstance(router, LinearRouter)
        router.grow(1)
