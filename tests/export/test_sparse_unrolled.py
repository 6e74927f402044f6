"""The form of exported graphs, each expert on the rows that chose it, in torch and ONNX Runtime.

Shapes: N rows, D input width, E experts, K slots of a row.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from recsys_moe.errors import RequestError
from recsys_moe.moe import dispatch
from recsys_moe.moe.banks import Bank, LinearBank, MLPBank
from recsys_moe.moe.banks_gated import CrossBank, SwiGLUBank
from recsys_moe.moe.banks_hetero import HeteroBank
from recsys_moe.moe.router_softmax import SoftmaxRouter
from recsys_moe.moe.router_top_k import TopKRouter
from recsys_moe.moe.router_top_p import TopPRouter
from recsys_moe.moe.routing import Routing
from recsys_moe.moe.unrolled import experts_of, unrolled, unrolled_weights

D, E, K = 8, 6, 2


class Fixed(Bank):
    """Two experts without a parameter, as a fitted model is one."""

    def __init__(self) -> None:
        super().__init__(2, D, 5)

    def forward(self, x_ND: Tensor) -> Tensor:
        return torch.stack([x_ND[:, :5].sin(), x_ND[:, 3:].cos()], dim=1)


def hetero(width: int = 5) -> HeteroBank:
    parts = [MLPBank(3, D, [7, width]), LinearBank(1, 4, 3), Fixed()]
    return HeteroBank(parts, features=[None, [slice(1, 3), slice(5, 7)], None])


BANKS = {
    "mlp": lambda: MLPBank(E, D, [16, 5]),
    "swiglu": lambda: SwiGLUBank(E, D, 12),
    "linear": lambda: LinearBank(E, D, 5, bias=False),
    "cross": lambda: CrossBank(E, D, rank=2),
    "hetero": hetero,
}


def case(name: str, num_rows: int, num_gates: int = 2) -> tuple[Tensor, list[Routing], nn.Module]:
    """Return rows, a routing a gate and a bank, float64; the last expert is idle."""
    torch.manual_seed(num_rows)
    seen = [True] * (E - 1) + [False]
    routers = [
        TopKRouter(D, E, K, visible=seen),
        TopPRouter(D, E, 0.6, max_experts=3, visible=seen),
    ]
    x_ND = torch.randn(num_rows, D, dtype=torch.float64)
    routings = [router.double()(x_ND) for router in routers[:num_gates]]
    return x_ND, routings, BANKS[name]().double()


@pytest.mark.parametrize("num_rows", [0, 1, 7, 64])
@pytest.mark.parametrize("name", BANKS)
def test_it_is_all_experts_on_all_rows(name: str, num_rows: int) -> None:
    x_ND, routings, bank = case(name, num_rows)

    for got, routing in zip(unrolled(x_ND, routings, bank), routings, strict=True):
        wanted = dispatch.dense(x_ND, routing, bank)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "hetero"])
def test_it_has_the_same_gradients(name: str) -> None:
    def gradients(sparse: bool) -> list[Tensor]:
        x_ND, _, bank = case(name, 7)
        router = TopKRouter(D, E, K).double()
        routing = router(x_ND.requires_grad_())
        mixed = unrolled(x_ND, [routing], bank)[0] if sparse else None
        mixed = dispatch.dense(x_ND, routing, bank) if mixed is None else mixed
        wanted = [x_ND, *router.parameters(), *bank.parameters()]
        torch.manual_seed(1)
        return list(torch.autograd.grad((mixed * torch.randn_like(mixed)).sum(), wanted))

    for got, wanted in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_an_expert_sees_the_rows_that_chose_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x_ND, routings, bank = case("mlp", 64)
    seen, body = [], MLPBank.body

    def counted(self: Bank, x: Tensor, *rest: object) -> Tensor:
        seen.append(len(x))
        return body(self, x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(MLPBank, "body", counted)

    unrolled(x_ND, routings, bank)

    chosen_NE = routings[0].chosen() | routings[1].chosen()
    assert seen == chosen_NE.sum(0).tolist()
    assert seen[-1] == 0 < seen[0] < 64


def test_weights_may_be_any_that_say_who_is_used() -> None:
    x_ND, routings, bank = case("mlp", 7, num_gates=1)
    weights_NE = SoftmaxRouter(D, E).double()(x_ND).dense()

    (got,) = unrolled_weights(x_ND, [weights_NE], bank)

    wanted = torch.stack(
        [expert(x_ND) * weights_NE[:, [e]] for e, expert in enumerate(experts_of(bank))]
    ).sum(0)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    with pytest.raises(RequestError, match="8 numbers and 6 experts"):
        unrolled_weights(x_ND, [weights_NE[:, :4]], bank)
    with pytest.raises(RequestError, match="got 7, 6"):
        unrolled(x_ND[:, :7], routings, bank)


class Mixed(nn.Module):
    """Two gates over one bank, and what the first of them chose."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList([TopKRouter(D, E, K), TopKRouter(D, E, 3)])
        self.bank = hetero(256)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        routings = [gate(x) for gate in self.gates]
        index = routings[0].index
        return (*unrolled(x, routings, self.bank), index, routings[0].logits)


@pytest.fixture(scope="module")
def module() -> Mixed:
    torch.manual_seed(0)
    return Mixed().eval()


@pytest.fixture(scope="module")
def graph(module: Mixed) -> bytes:
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (torch.randn(3, D),),
            dynamo=True,
            opset_version=21,
            dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    logging.disable(disabled)
    assert program is not None
    return program.model_proto.SerializeToString()


def run(graph: bytes, x: Tensor, threads: int = 1) -> Sequence[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(graph, options, providers=providers)
    return session.run(None, {"x": x.numpy()})


@pytest.mark.parametrize("num_rows", [0, 1, 3, 64, 257, 8192])
def test_the_graph_is_the_module(graph: bytes, module: Mixed, num_rows: int) -> None:
    torch.manual_seed(num_rows)
    x = torch.randn(num_rows, D)

    *got, index, _ = run(graph, x)

    *wanted, chosen, logits = (tensor.detach().numpy() for tensor in module(x))
    for mine, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)
    ordered = np.sort(logits, axis=1)
    clear = ordered[:, -K] - ordered[:, -K - 1] > 1e-5
    same = (np.sort(index, axis=1) == np.sort(chosen, axis=1)).all(1)[clear]
    assert same.mean() >= 0.9999 if len(same) else num_rows == 0


def test_a_row_alone_is_as_in_a_batch(graph: bytes) -> None:
    torch.manual_seed(5)
    x = torch.randn(64, D)
    together = run(graph, x)[:2]

    for row in range(0, 64, 8):
        for mine, all_rows in zip(run(graph, x[row : row + 1])[:2], together, strict=True):
            np.testing.assert_allclose(mine[0], all_rows[row], rtol=0, atol=1e-6)


def test_a_tie_goes_to_the_first_experts(graph: bytes) -> None:
    index = run(graph, torch.zeros(5, D))[2]

    assert index.tolist() == [list(range(K))] * 5


def test_threads_lose_no_addition(graph: bytes) -> None:
    """ScatterND adds rows in parallel; several additions to one row in one node would race."""
    operators = [node.op_type for node in onnx.load_from_string(graph).graph.node]
    assert operators.count("ScatterND") == operators.count("NonZero") == E
    torch.manual_seed(6)
    x = torch.randn(4096, D)
    wanted = run(graph, x)

    for _ in range(10):
        for mine, theirs in zip(run(graph, x, threads=8), wanted, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)
