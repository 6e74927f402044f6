"""On a GPU: the same choices as on a CPU, and no wait for the device."""

from collections.abc import Iterator

import pytest
import torch

from recsys_moe.moe.banks import MLPBank
from tests.moe.router_cases import BATCHWISE, EXPERTS, ROW_BY_ROW, random, rows

ALL = ROW_BY_ROW | BATCHWISE


@pytest.fixture
def syncs_allowed_again() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.usefixtures("syncs_allowed_again")
def test_a_step_does_not_wait_for_the_device(name: str, training: bool) -> None:
    router = random(ALL[name]).train(training).cuda()
    bank = MLPBank(EXPERTS, 8, [16, 8]).cuda()
    x, mask = rows(4096).cuda(), (torch.arange(4096) % 5 > 0).cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")

    with torch.autocast("cuda", torch.bfloat16):
        routing = router(x, mask)
        y = bank.batched(x[None].expand(EXPERTS, -1, -1))
        if getattr(router, "mixes", False):
            y, routing = router.mix(x, bank, mask)
    (y.float().square().sum() + routing.weights.square().sum()).backward()
    counts = routing.counts(mask)
    if hasattr(router, "update_bias"):
        router.update_bias(counts)

    torch.cuda.set_sync_debug_mode("default")
    assert routing.logits.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("name", ALL)
def test_a_gpu_routes_as_a_cpu_does(name: str) -> None:
    router, x = random(ALL[name]).double().eval(), rows(4096).double()

    here = router(x)
    there = router.cuda()(x.cuda())

    torch.testing.assert_close(there.dense().cpu(), here.dense(), rtol=0, atol=1e-12)
    assert torch.equal(there.chosen().cpu(), here.chosen())


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mixtral", "switch", "noisy", "sigmoid", "top-p", "cosine top-k"])
def test_a_gpu_gives_ties_to_the_first_experts(name: str) -> None:
    router = ALL[name](None).eval().cuda()
    with torch.no_grad():
        for tensor in router.state_dict().values():
            tensor.zero_()

    index = router(torch.zeros(5, 8, device="cuda")).index

    assert index.tolist() == [list(range(index.shape[1]))] * 5
