"""A routing says the same in both of its forms."""

import torch
from torch.utils import _pytree

from recsys_moe.moe.routing import Routing

PROBS = torch.full((3, 4), 0.25)
SPARSE = Routing(
    weights=torch.tensor([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]]),
    index=torch.tensor([[2, 0], [1, 3], [3, 0]]),
    probs=PROBS,
    logits=PROBS.log(),
    kept=torch.tensor([[True, True], [True, True], [True, False]]),
)
DENSE = Routing(weights=PROBS, index=None, probs=PROBS, logits=PROBS.log())


def test_dense_places_each_weight_at_its_expert() -> None:
    expected = torch.tensor([[0.25, 0, 0.75, 0], [0, 0.5, 0, 0.5], [0, 0, 0, 1]])

    torch.testing.assert_close(SPARSE.dense(), expected, rtol=0, atol=0)
    assert DENSE.dense() is DENSE.weights


def test_an_unused_slot_is_no_choice() -> None:
    chosen = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 1]]).bool()

    assert torch.equal(SPARSE.chosen(), chosen)
    assert DENSE.chosen().all()


def test_counts_leave_masked_rows_out() -> None:
    mask = torch.tensor([True, False, True])

    assert SPARSE.counts().tolist() == [1, 1, 1, 2]
    assert SPARSE.counts(mask).tolist() == [1, 0, 1, 1]
    assert SPARSE.masked(mask).counts().tolist() == [1, 0, 1, 1]
    assert DENSE.masked(mask).counts().tolist() == [2, 2, 2, 2]


def test_a_masked_row_is_sent_nowhere() -> None:
    mask = torch.tensor([True, False, True])

    for routing in (SPARSE, DENSE):
        masked = routing.masked(mask)

        assert torch.equal(masked.dense()[mask], routing.dense()[mask])
        assert not masked.dense()[~mask].any()
        assert masked.probs is routing.probs


def test_a_routing_is_a_tree_of_tensors() -> None:
    leaves, tree = _pytree.tree_flatten(SPARSE)
    doubled = _pytree.tree_unflatten(
        [2 * leaf for leaf in leaves if leaf is not None] + leaves[5:], tree
    )

    assert isinstance(doubled, Routing)
    assert torch.equal(doubled.weights, 2 * SPARSE.weights)


def test_a_routing_passes_through_a_compiled_function() -> None:
    compiled = torch.compile(
        lambda r: r.masked(r.weights.sum(1) > 0), backend="eager", fullgraph=True
    )

    assert torch.equal(compiled(SPARSE).dense(), SPARSE.dense())
