"""What every router keeps, whatever its formula."""

import pytest
import torch
from torch import nn

from recsys_moe.moe.router_base import first_largest
from recsys_moe.moe.router_cosine import CosineRouter
from recsys_moe.moe.router_expert_choice import ExpertChoiceRouter
from recsys_moe.moe.router_hierarchical import HierarchicalRouter
from recsys_moe.moe.router_sigmoid import SigmoidRouter
from recsys_moe.moe.router_soft_moe import SoftMoERouter
from recsys_moe.moe.router_softmax import SoftmaxRouter
from recsys_moe.moe.router_top_k import NoisyTopKRouter, TopKRouter
from recsys_moe.moe.router_top_p import TopPRouter
from tests.moe.router_cases import BATCHWISE, EXPERTS, HIDING, ROW_BY_ROW, VISIBLE, random, rows

ALL = ROW_BY_ROW | BATCHWISE
SUM_TO_ONE = ["softmax", "mixtral", "noisy", "top-p", "cosine", "cosine top-k", "hierarchical"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("training", [True, False])
def test_a_routing_has_its_shapes_and_types(name: str, count: int, training: bool) -> None:
    routing = random(ALL[name]).train(training)(rows(count))

    wanted = (count, EXPERTS)
    assert routing.dense().shape == routing.probs.shape == routing.logits.shape == wanted
    assert {routing.weights.dtype, routing.probs.dtype, routing.logits.dtype} == {torch.float32}
    assert routing.kept is None or routing.kept.shape == routing.weights.shape
    if routing.index is not None:
        assert routing.index.dtype == torch.int64
        assert all(len(set(row)) == len(row) for row in routing.index.tolist())
    torch.testing.assert_close(routing.probs.sum(1), torch.ones(count))


@pytest.mark.parametrize("name", SUM_TO_ONE)
@pytest.mark.parametrize("training", [True, False])
def test_renormalised_weights_sum_to_one(name: str, training: bool) -> None:
    routing = random(ALL[name]).train(training)(rows(33))

    torch.testing.assert_close(routing.weights.sum(1), torch.ones(33))


@pytest.mark.parametrize("name", ALL)
def test_permuting_rows_permutes_the_routing(name: str) -> None:
    router, x, order = random(ALL[name]).double().eval(), rows(19).double(), torch.randperm(19)

    torch.testing.assert_close(
        router(x[order]).dense(), router(x).dense()[order], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_a_row_alone_is_the_row_in_a_batch(name: str) -> None:
    router, x = random(ROW_BY_ROW[name]).eval(), rows(19)

    alone = torch.cat([router(x[n : n + 1]).dense() for n in range(19)])

    torch.testing.assert_close(router(x).dense(), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", BATCHWISE)
def test_a_router_that_cannot_be_exported_says_why(name: str) -> None:
    router = BATCHWISE[name](None)

    assert not router.exportable
    assert "depend on the rows" in router.not_exportable_because


@pytest.mark.parametrize("name", [*HIDING, "expert choice"])
@pytest.mark.parametrize("training", [True, False])
def test_an_expert_out_of_sight_gets_nothing(name: str, training: bool) -> None:
    router, x = random(ALL[name], visible=VISIBLE).train(training), rows(33)
    hidden = ~torch.tensor(VISIBLE)

    routing = router(x)
    (routing.weights**2).sum().backward()

    assert not routing.dense()[:, hidden].any()
    assert not (routing.chosen() & (routing.dense() > 0))[:, hidden].any()
    assert (routing.logits[:, hidden] == -torch.inf).all()
    assert (routing.probs[:, hidden] == 0).all()
    grads = [p.grad for p in router.parameters() if p.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", [name for name in HIDING if name != "dselect-k"])
def test_a_hidden_expert_changes_nothing_for_the_others(name: str) -> None:
    router, x = random(ALL[name], visible=VISIBLE).double().eval(), rows(33).double()
    before = router(x).dense()
    with torch.no_grad():
        for parameter in router.parameters():
            if parameter.shape[:1] == (EXPERTS,):
                parameter[~torch.tensor(VISIBLE)] += 3

    torch.testing.assert_close(router(x).dense(), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_a_masked_row_has_no_weight_and_no_gradient(name: str) -> None:
    router, x = random(ALL[name]), rows(12).requires_grad_()
    mask = torch.arange(12) % 3 > 0

    routing = router(x, mask)
    routing.weights.square().sum().backward()

    assert not routing.dense()[~mask].any()
    assert not routing.chosen()[~mask].any()
    assert x.grad is not None
    assert not x.grad[~mask].any()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_masked_rows_change_nothing_for_the_others(name: str) -> None:
    router, x = random(ALL[name]).double().eval(), rows(12).double()
    mask = torch.arange(12) % 3 > 0

    routing, alone = router(x, mask), router(x[mask])

    torch.testing.assert_close(routing.dense()[mask], alone.dense(), rtol=0, atol=1e-12)
    assert torch.equal(routing.chosen()[mask], alone.chosen())


@pytest.mark.parametrize("name", ALL)
def test_what_a_masked_row_holds_does_not_matter(name: str) -> None:
    router, x = random(ALL[name]).eval(), rows(12)
    mask = torch.arange(12) % 3 > 0
    before = router(x, mask)

    after = router(x.masked_fill(~mask.unsqueeze(1), torch.nan), mask)

    assert torch.equal(after.dense(), before.dense())
    assert torch.equal(after.chosen(), before.chosen())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_reach_a_router(name: str, dtype: torch.dtype) -> None:
    router, x = random(ALL[name]).eval(), rows(257).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        inside = router(x)

    outside = router(x)

    assert inside.logits.dtype == torch.float32
    assert torch.equal(inside.weights, outside.weights)
    assert torch.equal(inside.chosen(), outside.chosen())
    if inside.index is not None:
        assert torch.equal(inside.index, outside.index)


@pytest.mark.parametrize("name", ALL)
def test_a_float64_router_stays_float64(name: str) -> None:
    routing = random(ALL[name]).double()(rows(5).double())

    assert routing.weights.dtype == routing.probs.dtype == torch.float64


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("training", [True, False])
def test_a_router_compiles_without_a_break(name: str, training: bool) -> None:
    torch._dynamo.reset()
    router, x = random(ALL[name]).train(training), rows(9)
    mask = torch.arange(9) > 2
    compiled = torch.compile(router, backend="eager", fullgraph=True)

    torch.manual_seed(5)
    expected = router(x, mask)
    torch.manual_seed(5)

    torch.testing.assert_close(compiled(x, mask).dense(), expected.dense(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("router", "names"),
    [
        (SoftmaxRouter(8, 6), ["linear.weight", "linear.bias"]),
        (TopKRouter(8, 6, 2, bias=True), ["linear.weight", "linear.bias"]),
        (NoisyTopKRouter(8, 6, 2), ["linear.weight", "noise.weight"]),
        (SigmoidRouter(8, 6, 2), ["linear.weight", "selection_bias"]),
        (TopPRouter(8, 6, 0.6, max_experts=4), ["linear.weight"]),
        (CosineRouter(8, 6, sphere_width=4, k=2), ["directions_ER"]),
        (ExpertChoiceRouter(8, 6, capacity_factor=2), ["linear.weight"]),
    ],
)
def test_relabelling_experts_relabels_the_routing(router: nn.Module, names: list[str]) -> None:
    router = router.double().eval()
    state = router.state_dict()
    with torch.no_grad():
        for name in names:
            state[name].normal_()
    x, order = rows(41).double(), torch.tensor([3, 0, 5, 1, 4, 2])
    before = router(x).dense()

    router.load_state_dict(state | {name: state[name][order].clone() for name in names})

    torch.testing.assert_close(router(x).dense(), before[:, order], rtol=0, atol=1e-12)


def test_relabelling_slots_of_soft_moe_relabels_its_shares() -> None:
    router, x = SoftMoERouter(8, 3, slots_per_expert=2).double(), rows(11).double()
    before, order = router(x).dense(), torch.tensor([2, 0, 1])
    with torch.no_grad():
        router.phi_DS.copy_(router.phi_DS.view(8, 3, 2)[:, order].reshape(8, 6))

    torch.testing.assert_close(router(x).dense(), before[:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [2, 6, 9, 20])
def test_choosing_all_experts_is_the_dense_softmax(size: int) -> None:
    x = rows(33).double()
    dense = SoftmaxRouter(8, size).double()
    expected = dense(x).dense()
    for sparse in (
        TopKRouter(8, size, size, bias=True),
        TopKRouter(8, size, size, renormalise=False, bias=True),
        TopPRouter(8, size, 1.0, max_experts=size, bias=True),
    ):
        sparse.double().load_state_dict(dense.state_dict())

        torch.testing.assert_close(sparse(x).dense(), expected, rtol=0, atol=1e-12)


def test_choosing_all_experts_of_the_others_is_their_dense_form() -> None:
    x = rows(33).double()
    pairs = [
        (CosineRouter(8, 6, sphere_width=4), CosineRouter(8, 6, sphere_width=4, k=6)),
        (
            HierarchicalRouter(8, 6, 2),
            HierarchicalRouter(8, 6, 2, groups_kept=2, experts_kept=3),
        ),
    ]
    for dense, sparse in pairs:
        sparse.load_state_dict(dense.state_dict())

        torch.testing.assert_close(
            sparse.double()(x).dense(), dense.double()(x).dense(), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("k", [1, 2, 3, 8, 9, 20])
def test_ties_go_to_the_lower_number(k: int) -> None:
    assert first_largest(torch.zeros(4, 40), k).tolist() == [list(range(k))] * 4
    pairs = torch.tensor([[1.0, 2, 2, 1, 2, 0, 1, *[-1] * 33]])
    assert first_largest(pairs, k).tolist()[0] == [1, 2, 4, 0, 3, 6, 5, *range(7, 40)][:k]


@pytest.mark.parametrize("name", ["mixtral", "switch", "noisy", "sigmoid", "top-p", "cosine top-k"])
def test_constant_logits_choose_the_first_experts(name: str) -> None:
    router = ALL[name](None).eval()
    nn.init.zeros_(next(router.parameters()))
    if name == "switch":
        nn.init.zeros_(router.linear.bias)

    index = router(torch.zeros(5, 8)).index

    assert index.tolist() == [list(range(index.shape[1]))] * 5


@pytest.mark.parametrize("name", ALL)
def test_shapes_are_known_without_a_number(name: str) -> None:
    router = ALL[name](None).eval().to("meta")

    assert router(torch.zeros(7, 8, device="meta")).dense().shape == (7, EXPERTS)
