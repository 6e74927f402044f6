"""Two processes: the balance loss and the biases of the whole batch, on both."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from recsys_moe.gate_balance import custom
from recsys_moe.models import mmoe
from recsys_moe.moe.router_sigmoid import SigmoidRouter
from recsys_moe.spec import FeatureSpec

PROCESS = """
import sys, torch
import torch.distributed as dist
from pathlib import Path
from tests.training_gates.test_balance_processes import FIRST, ROWS, a_step

rank, folder, features = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
rows = slice(0, FIRST) if rank == 0 else slice(FIRST, ROWS)
torch.save(a_step(features, rows, dist.group.WORLD), folder / f"{rank}.pt")
dist.destroy_process_group()
"""
ROWS, FIRST = 60, 23


def a_step(
    features: Path, rows: slice, group: "dist.ProcessGroup | None"
) -> tuple[Tensor, list[Tensor]]:
    """Return the balance loss of some rows, and the biases after a step."""
    spec = FeatureSpec.load(features / "feature_spec.json")
    torch.manual_seed(1)
    model = mmoe(
        spec,
        embedding_dim=4,
        num_experts=6,
        widths=[8],
        tower_widths=[4],
        dropout=0.0,
        embedding_dropout=0.0,
        router=lambda width, num_experts: SigmoidRouter(width, num_experts, 2),
    )
    codes_BS = torch.randint(0, 6, (ROWS, spec.num_slots), dtype=torch.int32)
    numbers_BK = torch.randn(ROWS, spec.num_numbers)
    off = {name: 0.0 for name in ("z", "importance", "load", "entropy")}
    off |= {"selector_entropy": 0.0, "unreachable_mass": 0.0}
    balance = custom(model, switch=1.0, bias_rate=1e-3, **off)
    balance.start(torch.device("cpu"), num_micro_batches=1, group=group)
    loss = balance.losses(model.routed(codes_BS[rows], numbers_BK[rows])[1])["switch"]
    balance.step_done()
    routers = [module for module in model.modules() if isinstance(module, SigmoidRouter)]
    return loss.detach(), [router.selection_bias for router in routers]


def test_two_processes_have_the_loss_and_the_biases_of_the_whole_batch(
    make_features: Callable[..., Path], tmp_path: Path
) -> None:
    features, root = make_features(rows=20), Path(__file__).parents[2]
    arguments = [sys.executable, "-c", PROCESS]
    started = [
        subprocess.Popen([*arguments, str(rank), str(tmp_path), str(features)], cwd=root)
        for rank in range(2)
    ]
    whole_loss, whole_biases = a_step(features, slice(0, ROWS), None)
    part_loss, part_biases = a_step(features, slice(0, FIRST), None)
    assert [process.wait(timeout=120) for process in started] == [0, 0]

    for rank in range(2):
        loss, found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(loss, whole_loss)
        assert all(map(torch.equal, found, whole_biases))
    assert (part_loss - whole_loss).abs() > 1e-3
    assert not all(map(torch.equal, part_biases, whole_biases))
