"""What sparse experts are for: computing few of many costs about as many."""

import time
from collections.abc import Iterator

import pytest
import torch

from recsys_moe.moe.banks import MLPBank
from recsys_moe.moe.dispatch import combine
from recsys_moe.moe.router_top_k import TopKRouter


@pytest.fixture
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("_one_thread")
def test_two_of_sixteen_experts_take_a_quarter_of_the_time_at_most() -> None:
    torch.manual_seed(0)
    bank, x_ND = MLPBank(16, 256, [512, 256]), torch.randn(8192, 256)
    routing = TopKRouter(256, 16, 2)(x_ND)

    def seconds(how: str) -> float:
        times = []
        for _ in range(3):
            start = time.process_time()
            with torch.no_grad():
                combine(x_ND, routing, bank, how=how)
            times.append(time.process_time() - start)
        return min(times)

    assert 4 * seconds("auto") <= seconds("dense")
