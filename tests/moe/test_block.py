"""The block: routed plus shared, checkpointed or not, and exact against the formula."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recsys_moe.errors import RequestError
from recsys_moe.modules import MoEBlock
from recsys_moe.moe.banks import LinearBank, MLPBank
from recsys_moe.moe.banks_gated import SwiGLUBank
from recsys_moe.moe.router_base import Router
from recsys_moe.moe.router_expert_choice import ExpertChoiceRouter
from recsys_moe.moe.router_soft_moe import SoftMoERouter
from recsys_moe.moe.router_softmax import SoftmaxRouter
from recsys_moe.moe.router_top_k import NoisyTopKRouter, TopKRouter

ROOT = Path(__file__).parents[2]


def saved_bytes(block: MoEBlock, x_ND: Tensor) -> int:
    """Bytes that one forward pass keeps for the backward, parameters and input left out."""
    known = {x_ND.data_ptr(), *(p.data_ptr() for p in block.parameters())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(x_ND)
    return sum(kept.values())


@pytest.mark.parametrize("kind", ["expert choice", "soft"])
def test_routers_that_mix_themselves_do_so_in_a_block(kind: str) -> None:
    torch.manual_seed(0)
    router: Router = ExpertChoiceRouter(8, 4, capacity_factor=1.0)
    if kind == "soft":
        router = SoftMoERouter(8, 4, slots_per_expert=2)
    bank, x_ND = MLPBank(4, 8, [6]), torch.randn(12, 8)
    mask_N = torch.arange(12) < 9
    wanted_NO, _ = router.mix(x_ND, bank, mask_N)

    y_NO, routing = MoEBlock(router, bank)(x_ND, mask_N)

    assert torch.equal(y_NO, wanted_NO)
    assert routing.num_experts == 4
    with pytest.raises(RequestError, match="checkpoint"):
        MoEBlock(router, bank, checkpoint=True)


def test_shared_experts_see_every_row() -> None:
    torch.manual_seed(0)
    bank, shared = SwiGLUBank(4, 8, 16), SwiGLUBank(2, 8, 16)
    block = MoEBlock(TopKRouter(8, 4, 2), bank, shared).double()
    x_ND = torch.randn(9, 8, dtype=torch.float64)

    y_NO, routing = block(x_ND)

    routed_NO = (routing.dense().unsqueeze(-1) * bank(x_ND)).sum(1)
    torch.testing.assert_close(y_NO, routed_NO + shared(x_ND).sum(1), rtol=0, atol=1e-12)


def test_all_experts_of_a_softmax_are_a_dense_mixture() -> None:
    torch.manual_seed(0)
    bank, x_ND = MLPBank(4, 8, [6]).double(), torch.randn(9, 8, dtype=torch.float64)
    sparse = TopKRouter(8, 4, 4).double()
    dense = SoftmaxRouter(8, 4, bias=False).double()
    dense.load_state_dict(sparse.state_dict())

    got, want = (MoEBlock(router, bank)(x_ND)[0] for router in (sparse, dense))

    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_leading_dimensions_and_a_mask_are_rows() -> None:
    torch.manual_seed(0)
    block = MoEBlock(TopKRouter(8, 4, 2), LinearBank(4, 8, 5))
    x, mask = torch.randn(2, 3, 8), torch.tensor([[True, True, False], [True, False, False]])

    y, routing = block(x, mask)

    assert y.shape == (2, 3, 5)
    assert routing.weights.shape == (6, 2)
    torch.testing.assert_close(y.view(6, 5)[0], block(x.view(6, 8)[:1])[0][0])
    assert (y[~mask] == 0).all()


@pytest.mark.parametrize("dispatch", ["dense", "split", "capacity"])
def test_computing_again_changes_no_gradient(dispatch: str) -> None:
    torch.manual_seed(0)
    bank = MLPBank(8, 16, [32, 16], dropout=0.3)
    block = MoEBlock(NoisyTopKRouter(16, 8, 2), bank, dispatch=dispatch).double()
    torch.nn.init.normal_(block.router.linear.weight)
    x_ND = torch.randn(64, 16, dtype=torch.float64, requires_grad=True)
    runs = []
    for block.checkpoint in (False, True):
        torch.manual_seed(1)  # of noise and dropout
        y_NO, _ = block(x_ND)
        wanted = [x_ND, *block.parameters()]
        runs.append([y_NO, *torch.autograd.grad(y_NO.square().sum(), wanted)])

    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dispatch", ["dense", "split", "grouped"])
def test_computing_again_keeps_a_quarter_at_most(dispatch: str) -> None:
    block = MoEBlock(TopKRouter(64, 16, 2), MLPBank(16, 64, [64, 64]), dispatch=dispatch)
    x_ND = torch.randn(1024, 64, requires_grad=True)
    whole = saved_bytes(block, x_ND)
    block.checkpoint = True

    assert 0 < saved_bytes(block, x_ND) <= 0.25 * whole


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MoEBlock(TopKRouter(8, 3, 2), LinearBank(4, 8, 8)), "router: wanted one for"),
        (
            lambda: MoEBlock(TopKRouter(8, 4, 2), LinearBank(4, 8, 8), LinearBank(1, 8, 4)),
            "shared: wanted widths 8 -> 8, got 8 -> 4",
        ),
        (
            lambda: MoEBlock(TopKRouter(8, 4, 2), LinearBank(4, 8, 8), dispatch="groupd"),
            "Did you mean 'grouped'",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(build: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build()


def test_one_row_or_none_or_many_go_through_one_compiled_graph() -> None:
    torch._dynamo.reset()
    block = MoEBlock(TopKRouter(8, 4, 2), SwiGLUBank(4, 8, 16), SwiGLUBank(1, 8, 16))
    compiled = torch.compile(block, fullgraph=True, backend="eager")

    for num_rows in (0, 1, 3, 64, 257):
        x_ND = torch.randn(num_rows, 8)
        torch.testing.assert_close(compiled(x_ND)[0], block(x_ND)[0], rtol=1e-5, atol=1e-5)


def test_it_exports_with_any_number_of_rows() -> None:
    block = MoEBlock(TopKRouter(8, 4, 2), MLPBank(4, 8, [16, 8])).eval()
    rows = torch.export.Dim("rows")
    program = torch.export.export(block, (torch.randn(7, 8),), dynamic_shapes={"x": {0: rows}})

    for num_rows in (0, 1, 3, 64, 257):
        x_ND = torch.randn(num_rows, 8)
        got, _ = program.module()(x_ND)
        torch.testing.assert_close(got, block(x_ND)[0], rtol=1e-5, atol=1e-5)


def test_the_name_costs_nothing_until_it_is_used() -> None:
    code = "import sys, recsys_moe.modules; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "False"


def test_the_example_learns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["transformer_moe.py", "--steps", "41"])
    runpy.run_path(str(ROOT / "examples" / "transformer_moe.py"), run_name="__main__")

    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[0] > 2.5
    assert losses[-1] < 0.5
