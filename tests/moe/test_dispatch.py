"""Every form of dispatch is the sum over a row's experts, row by row, in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recsys_moe.errors import RequestError
from recsys_moe.moe.banks import Bank, LinearBank, MLPBank
from recsys_moe.moe.banks_gated import CrossBank, SwiGLUBank
from recsys_moe.moe.banks_hetero import HeteroBank
from recsys_moe.moe.choice import choose
from recsys_moe.moe.dispatch import capacity, combine, dropped_share
from recsys_moe.moe.routing import Routing

D, E, O = 8, 5, 6  # noqa: E741
TEXT, REST = slice(0, 3), slice(5, 8)
BANKS: dict[str, Callable[[], Bank | HeteroBank]] = {
    "relu": lambda: MLPBank(E, D, [16, O]),
    "silu, no bias, linear end": lambda: MLPBank(
        E, D, [7, 16, O], activation="silu", bias=False, last_activation=False
    ),
    "gelu": lambda: MLPBank(E, D, [16, O], activation="gelu_tanh"),
    "swiglu": lambda: SwiGLUBank(E, D, 12, O),
    "swiglu with biases": lambda: SwiGLUBank(E, D, 12, O, bias=True),
    "linear": lambda: LinearBank(E, D, O),
    "cross": lambda: CrossBank(E, D, rank=3, num_layers=2),
    "hetero": lambda: HeteroBank(
        [MLPBank(2, D, [9]), CrossBank(1, 6, rank=2), LinearBank(2, 3, O)],
        features=[None, [TEXT, REST], [TEXT]],
        output_width=O,
    ),
}


def by_hand(bank: Bank | HeteroBank, e: int, x_D: Tensor) -> Tensor:
    """One expert on one row, from the stacked parameters, written out."""
    if isinstance(bank, HeteroBank):
        number = next(i for i in range(3) if e < sum(bank.sizes[: i + 1]))
        x_D = [x_D, torch.cat([x_D[TEXT], x_D[REST]]), x_D[TEXT]][number]
        y = by_hand(bank.banks[number], e - sum(bank.sizes[:number]), x_D)
        projection = bank.projections[number]
        return projection.weight @ y if bank.banks[number].output_width != O else y
    if isinstance(bank, MLPBank):
        act = {"relu": torch.relu, "silu": F.silu}.get(
            bank.activation, lambda z: F.gelu(z, approximate="tanh")
        )
        for layer, weight in enumerate(bank.weights_EOI):
            x_D = weight[e] @ x_D + (bank.biases_EO[layer][e] if len(bank.biases_EO) else 0)
            if bank.last_activation or layer < len(bank.weights_EOI) - 1:
                x_D = act(x_D)
        return x_D
    if isinstance(bank, SwiGLUBank):
        up_G = bank.gate_up_EGD[e] @ x_D
        if bank.gate_up_bias_EG is not None:
            up_G = up_G + bank.gate_up_bias_EG[e]
        hidden = len(up_G) // 2
        y = bank.down_EOH[e] @ (up_G[:hidden] * torch.sigmoid(up_G[:hidden]) * up_G[hidden:])
        return y if bank.down_bias_EO is None else y + bank.down_bias_EO[e]
    if isinstance(bank, CrossBank):
        first_D = x_D
        for v, u, b in zip(bank.v_EPD, bank.u_EDP, bank.biases_ED, strict=True):
            x_D = first_D * (u[e] @ (v[e] @ x_D) + b[e]) + x_D
        return x_D
    return bank.weight_EOI[e] @ x_D + bank.bias_EO[e]


def reference(x_ND: Tensor, routing: Routing, bank: Bank | HeteroBank) -> Tensor:
    index_NK = routing.index
    rows = []
    for n in range(len(x_ND)):
        y = torch.zeros(bank.output_width, dtype=x_ND.dtype)
        for k in range(index_NK.shape[1]):
            if routing.kept is None or routing.kept[n, k]:
                y = y + routing.weights[n, k] * by_hand(bank, int(index_NK[n, k]), x_ND[n])
        rows.append(y)
    return torch.stack(rows) if rows else x_ND.new_zeros(0, bank.output_width)


def route(
    num_rows: int,
    num_slots: int,
    *,
    num_experts: int = E,
    idle: int | None = None,
    kept: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Routing:
    logits_NE = torch.randn(num_rows, num_experts, dtype=dtype)
    if idle is not None:
        logits_NE[:, idle] = -torch.inf
    probs_NE = logits_NE.softmax(1)
    weights_NK, index_NK = (t[:, :num_slots].clone() for t in probs_NE.sort(1, descending=True))
    kept_NK = None
    if kept:
        kept_NK = torch.rand(num_rows, num_slots) < 0.6
        weights_NK = weights_NK * kept_NK
    return Routing(weights_NK.requires_grad_(), index_NK, probs_NE, logits_NE, kept_NK)


def everything(y_NO: Tensor, x_ND: Tensor, routing: Routing, bank: torch.nn.Module) -> list[Tensor]:
    """The output and the gradients of input, weights and parameters, zeros where there is none."""
    wanted = [x_ND, routing.weights, *bank.parameters()]
    scale = torch.linspace(-1, 2, y_NO.numel(), dtype=y_NO.dtype).view(y_NO.shape)
    grads = (
        torch.autograd.grad((y_NO * scale).sum(), wanted, allow_unused=True)
        if y_NO.requires_grad
        else [None] * len(wanted)
    )
    kept = torch.ones_like(routing.weights) if routing.kept is None else routing.kept
    zeros = [torch.zeros_like(w) if g is None else g for g, w in zip(grads, wanted, strict=True)]
    zeros[1] = zeros[1] * kept
    return [y_NO.detach(), *zeros]


CASES = {
    "7 rows": {"num_rows": 7, "num_slots": 2},
    "1 row": {"num_rows": 1, "num_slots": 2},
    "no row": {"num_rows": 0, "num_slots": 2},
    "one slot": {"num_rows": 7, "num_slots": 1},
    "all experts": {"num_rows": 7, "num_slots": E},
    "an idle expert": {"num_rows": 7, "num_slots": 3, "idle": 1},
    "unused slots": {"num_rows": 7, "num_slots": 3, "kept": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("how", ["dense", "split", "capacity"])
@pytest.mark.parametrize("kind", BANKS)
def test_every_form_is_the_loop_over_rows(kind: str, how: str, case: str) -> None:
    torch.manual_seed(1)
    bank, routing = BANKS[kind]().double(), route(**CASES[case])
    x_ND = torch.randn(len(routing.weights), D, dtype=torch.float64, requires_grad=True)

    got = combine(x_ND, routing, bank, how=how, capacity_factor=E)  # room for every row

    want = everything(reference(x_ND, routing, bank), x_ND, routing, bank)
    for a, b in zip(everything(got, x_ND, routing, bank), want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", BANKS)
def test_the_grouped_form_is_the_split_form(kind: str, case: str) -> None:
    torch.manual_seed(1)
    bank, routing = BANKS[kind](), route(**CASES[case], dtype=torch.float32)
    x_ND = torch.randn(len(routing.weights), D, requires_grad=True)

    got, want = (combine(x_ND, routing, bank, how=how) for how in ("grouped", "split"))

    want = everything(want, x_ND, routing, bank)
    for a, b in zip(everything(got, x_ND, routing, bank), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_grouped_form_on_an_accelerator_turns_the_rows_of_each_bank() -> None:
    """The path of HeteroBank that reads no size on the host, run where it can be seen."""
    torch.manual_seed(1)
    bank = BANKS["hetero"]()
    counts_E = torch.tensor([2, 0, 3, 1, 4])
    rows_RD = torch.randn(12, D, requires_grad=True)  # two rows of no expert behind

    def run(how: str) -> list[Tensor]:
        y_RO = bank.grouped(rows_RD, counts_E, how=how)[:10]
        return [y_RO, *torch.autograd.grad(y_RO.square().sum(), [rows_RD, *bank.parameters()])]

    for a, b in zip(run("grouped"), run("split"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["dense", "split", "capacity"])
def test_gradients_are_those_of_finite_differences(how: str) -> None:
    torch.manual_seed(0)
    bank, routing = BANKS["gelu"]().double(), route(6, 2)
    x_ND = torch.randn(6, D, dtype=torch.float64, requires_grad=True)

    def mixed(x_ND: Tensor, weights_NK: Tensor) -> Tensor:
        given = Routing(weights_NK, routing.index, routing.probs, routing.logits)
        return combine(x_ND, given, bank, how=how, capacity_factor=1.0)  # some rows are dropped

    assert torch.autograd.gradcheck(mixed, (x_ND, routing.weights))


def test_capacity_drops_the_last_rows_of_a_crowded_expert() -> None:
    bank = LinearBank(2, D, D)
    index_NK = torch.tensor([0, 0, 1, 0, 0, 0, 1, 0]).unsqueeze(1)  # C = 4 of 8 rows
    weights_NK, probs_NE = torch.ones(8, 1), torch.full((8, 2), 0.5)
    routing, x_ND = Routing(weights_NK, index_NK, probs_NE, probs_NE), torch.randn(8, D)
    assert capacity(routing, 1.0) == 4

    got = combine(x_ND, routing, bank, how="capacity", capacity_factor=1.0)

    want = combine(x_ND, routing, bank, how="split")
    dropped = torch.tensor([0, 0, 0, 0, 0, 1, 0, 1], dtype=torch.bool)
    torch.testing.assert_close(got[~dropped], want[~dropped])
    assert (got[dropped] == 0).all()
    assert dropped_share(routing, 1.0) == dropped.float().mean()
    assert dropped_share(routing, 2.0) == 0


def test_a_row_gets_the_same_whoever_stands_beside_it() -> None:
    torch.manual_seed(0)
    bank, routing = BANKS["swiglu"]().double(), route(9, 2)
    x_ND, order = torch.randn(9, D, dtype=torch.float64), torch.randperm(9)
    parts = (routing.weights, routing.index, routing.probs, routing.logits)

    for how in ("dense", "split"):
        y_NO = combine(x_ND, routing, bank, how=how)
        moved = combine(x_ND[order], Routing(*(t[order] for t in parts)), bank, how=how)
        alone = combine(x_ND[:1], Routing(*(t[:1] for t in parts)), bank, how=how)
        torch.testing.assert_close(moved, y_NO[order], rtol=0, atol=1e-12)
        torch.testing.assert_close(alone, y_NO[:1], rtol=0, atol=1e-12)


def test_numbers_of_experts_are_only_names() -> None:
    torch.manual_seed(0)
    bank, routing = BANKS["relu"]().double(), route(9, 2)
    x_ND, order = torch.randn(9, D, dtype=torch.float64), [3, 0, 4, 1, 2]
    renamed = torch.argsort(torch.tensor(order))[routing.index]
    other = Routing(routing.weights, renamed, routing.probs[:, order], routing.logits[:, order])

    y_NO = combine(x_ND, routing, bank, how="split")

    torch.testing.assert_close(
        combine(x_ND, other, bank.keep(order), how="split"), y_NO, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("how", "dtype"), [("dense", "float32"), ("grouped", "bfloat16")])
@pytest.mark.parametrize("kind", BANKS)
def test_it_compiles_without_a_break(kind: str, how: str, dtype: str) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    bank, routing = BANKS[kind]().to(getattr(torch, dtype)), route(16, 2, dtype=torch.float32)
    x_ND = torch.randn(16, D, dtype=getattr(torch, dtype), requires_grad=True)
    compiled = torch.compile(combine, fullgraph=True, backend="aot_eager")

    got, want = (f(x_ND, routing, bank, how=how) for f in (compiled, combine))

    wanted = [x_ND, *bank.parameters()]
    pairs = zip(*(torch.autograd.grad(y.float().sum(), wanted) for y in (got, want)), strict=True)
    for a, b in [(got, want), *pairs]:
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_autocast_computes_the_experts_in_its_type() -> None:
    torch.manual_seed(0)
    bank, routing = BANKS["swiglu with biases"](), route(16, 2, dtype=torch.float32)
    x_ND = torch.randn(16, D)
    want = combine(x_ND, routing, bank, how="split")

    with torch.autocast("cpu", torch.bfloat16):
        for how in ("dense", "split", "grouped", "capacity"):
            y_NO = combine(x_ND, routing, bank, how=how, capacity_factor=E)
            assert y_NO.dtype == torch.bfloat16
            torch.testing.assert_close(y_NO.float(), want, rtol=3e-2, atol=3e-2)


def test_a_dense_routing_is_computed_densely() -> None:
    bank, sparse = BANKS["linear"](), route(4, E, dtype=torch.float32)
    dense = Routing(sparse.dense(), None, sparse.probs, sparse.logits)
    x_ND = torch.randn(4, D)

    torch.testing.assert_close(combine(x_ND, dense, bank), combine(x_ND, sparse, bank, how="split"))
    with pytest.raises(RequestError, match="wanted 'dense' for a dense routing"):
        combine(x_ND, dense, bank, how="split")


def test_few_of_many_experts_are_sorted() -> None:
    bank, x_ND = MLPBank(16, 64, [64, 64]), torch.randn(4096, 64)

    assert choose(x_ND, route(4096, 2, num_experts=16), bank) in ("split", "grouped")
    assert choose(x_ND.double(), route(4096, 2, num_experts=16), bank) == "split"
    assert choose(x_ND.to("meta"), route(4096, 2, num_experts=16), bank) == "dense"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"how": "splitt"}, "Did you mean 'split'"),
        ({"how": "grouped"}, "float64"),
        ({"how": "capacity", "capacity_factor": 0.0}, "above 0"),
    ],
)
def test_a_wrong_request_is_named(change: dict[str, object], message: str) -> None:
    bank, x_ND = BANKS["linear"]().double(), torch.randn(4, D, dtype=torch.float64)
    with pytest.raises(RequestError, match=message):
        combine(x_ND, route(4, 2), bank, **change)


def test_a_routing_for_other_experts_is_refused() -> None:
    with pytest.raises(RequestError, match="wanted 5 experts of input width 8, got 4 and 8"):
        combine(torch.randn(4, D), route(4, 2, num_experts=4), BANKS["linear"]())
