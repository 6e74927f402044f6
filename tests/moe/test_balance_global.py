"""Balance losses over processes and micro-batches are those of the whole batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recsys_moe.moe.balance import load, switch_loss
from recsys_moe.moe.balance_losses import BalanceLosses
from recsys_moe.moe.monitor import Monitor
from recsys_moe.moe.monitor_health import Health
from recsys_moe.moe.routing import Routing

E, K, N, RANKS = 6, 2, 30, 2
FIRST = 11  # rows of the first process; the masks differ too

PROCESS = """
import sys, torch
import torch.distributed as dist
from tests.moe.test_balance_global import health, losses_and_gradient, share

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
group = dist.group.WORLD
found = (*losses_and_gradient(share(rank), group), health(share(rank), group).counts)
torch.save(found, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def noisy_top_k(x_ND: torch.Tensor, weight_DE: torch.Tensor, noise_NE: torch.Tensor) -> Routing:
    clean_NE = x_ND @ weight_DE
    logits_NE, spread_NE = clean_NE + 0.5 * noise_NE, torch.full_like(clean_NE, 0.5)
    top = logits_NE.topk(K)
    return Routing(
        top.values.softmax(-1),
        top.indices,
        logits_NE.softmax(-1),
        logits_NE,
        None,
        clean_NE,
        spread_NE,
    )


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x_ND = torch.randn(N, 4, generator=generator, dtype=torch.float64)
    noise_NE = torch.randn(N, E, generator=generator, dtype=torch.float64)
    return x_ND, noise_NE, torch.arange(N) % 4 != 1


def share(rank: int) -> slice:
    return slice(0, FIRST) if rank == 0 else slice(FIRST, N)


def losses_and_gradient(
    rows: slice, group: "torch.distributed.ProcessGroup | None"
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    x_ND, noise_NE, mask_N = (tensor[rows] for tensor in batch())
    generator = torch.Generator().manual_seed(1)
    weight_DE = torch.randn(4, E, generator=generator, dtype=torch.float64).requires_grad_()
    balance = BalanceLosses(switch=0.3, z=0.2, importance=0.7, load=0.5, group=group)
    losses = balance([noisy_top_k(x_ND, weight_DE, noise_NE)], mask_N)
    torch.stack(list(losses.values())).sum().backward()
    return {name: loss.detach() for name, loss in losses.items()}, weight_DE.grad


def health(rows: slice, group: "torch.distributed.ProcessGroup | None") -> Health:
    x_ND, noise_NE, mask_N = (tensor[rows] for tensor in batch())
    weight_DE = torch.ones(4, E, dtype=torch.float64)
    monitor = Monitor(E)
    monitor.update({"all": noisy_top_k(x_ND, weight_DE, noise_NE)}, mask_N)
    return monitor.read(group=group)


def test_processes_together_have_the_losses_of_the_whole_batch(tmp_path: Path) -> None:
    """Every process reports the value of the whole batch; gradients are averaged, as DDP does."""
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(rank), str(tmp_path)], cwd=root)
        for rank in range(RANKS)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]

    losses, gradient = losses_and_gradient(slice(0, N), None)

    for part, _, counts in parts:
        assert counts == health(slice(0, N), None).counts
        for name, loss in losses.items():
            torch.testing.assert_close(part[name], loss, atol=1e-12, rtol=0)
    mean = sum(part_gradient for _, part_gradient, _ in parts) / RANKS
    torch.testing.assert_close(mean, gradient, atol=1e-12, rtol=0)


def micro_batches() -> list[Routing]:
    x_ND, noise_NE, _ = batch()
    weight_DE = torch.randn(4, E, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [
        noisy_top_k(x_ND[start : start + 10], weight_DE, noise_NE[start : start + 10])
        for start in range(0, N, 10)
    ]


def test_micro_batches_with_the_load_of_all_give_the_loss_of_the_whole_batch() -> None:
    parts = micro_batches()
    load_E = torch.stack([load(part) for part in parts]).sum(0)
    x_ND, noise_NE, _ = batch()
    weight_DE = torch.randn(4, E, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    mean = torch.stack([switch_loss(part, load_E=load_E) for part in parts]).mean()

    torch.testing.assert_close(mean, switch_loss(noisy_top_k(x_ND, weight_DE, noise_NE)))


def test_the_buffer_holds_the_micro_batches_of_one_step() -> None:
    parts = micro_batches()
    balance = BalanceLosses(switch=1.0, accumulate=True)
    loads = torch.stack([load(part) for part in parts])
    for _ in range(2):  # a second step begins anew
        for m, part in enumerate(parts):
            expected = switch_loss(part, load_E=loads[: m + 1].sum(0))
            torch.testing.assert_close(balance([part])["switch"], expected)
        balance.step_done()


def test_validation_leaves_the_buffer_alone() -> None:
    parts = micro_batches()
    balance = BalanceLosses(switch=1.0, accumulate=True)
    balance([parts[0]])
    balance.eval()([parts[1]])

    value = balance.train()([parts[2]])["switch"]

    expected = switch_loss(parts[2], load_E=load(parts[0]) + load(parts[2]))
    torch.testing.assert_close(value, expected)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(value, switch_loss(parts[2]))
