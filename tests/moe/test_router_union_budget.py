"""Tasks share a budget of experts."""

import pytest
import torch

from recsys_moe.moe.router_union_budget import UnionBudgetRouter, stacked
from tests.moe.router_cases import VISIBLE, random, rows

X = rows(31, dtype=torch.float64)


def best(scores: dict[int, float], k: int) -> list[int]:
    return sorted(scores, key=lambda e: (-scores[e], e))[:k]


@pytest.mark.parametrize(("shared", "private"), [(2, 1), (1, 2), (3, 0), (0, 2), (2, 4)])
@pytest.mark.parametrize("task_weights", [None, [1.0, 0.0, 3.0]])
def test_experts_are_chosen_together_then_alone(
    shared: int, private: int, task_weights: list[float] | None
) -> None:
    router = random(
        lambda _: UnionBudgetRouter(
            8, 6, 3, shared=shared, private=private, task_weights=task_weights
        )
    ).double()
    say = [v / 4 for v in task_weights] if task_weights else [1 / 3] * 3
    routings = router(X)
    for n, x in enumerate(X):
        logits = (router.linear.weight @ x).view(3, 6)
        p = logits.softmax(1).tolist()
        joint = {e: sum(say[t] * p[t][e] for t in range(3)) for e in range(6)}
        together = best(joint, shared)
        for t in range(3):
            rest = {e: p[t][e] for e in range(6) if e not in together}
            chosen = together + best(rest, private)
            total = sum(p[t][e] for e in chosen)
            weights = [p[t][e] / total if e in chosen else 0.0 for e in range(6)]

            assert routings[t].index[n].tolist() == chosen
            assert routings[t].dense()[n].tolist() == pytest.approx(weights, abs=1e-12)


def test_a_row_stays_within_its_budget() -> None:
    router, x = random(lambda _: UnionBudgetRouter(8, 32, 4, shared=2, private=2)), rows(500)

    union = router.union(router(x))
    activated = union.kept.sum(1)

    assert union.index.shape == (500, 2 + 4 * 2)
    assert [router.slots_of(tasks) for tasks in (1, 2, 4)] == [4, 6, router.slots]
    assert activated.min() >= 4
    assert 8 < activated.max() <= 10
    assert torch.equal(activated, union.chosen().sum(1))


def test_the_union_holds_every_task() -> None:
    router = random(lambda _: UnionBudgetRouter(8, 6, 3, shared=1, private=1)).double()
    routings = router(X)

    union = router.union(routings)

    mean = sum(routing.dense() for routing in routings) / 3
    torch.testing.assert_close(union.dense(), mean, rtol=0, atol=1e-12)
    assert torch.equal(union.chosen(), mean > 0)


def test_tasks_that_agree_activate_no_more_than_one_task() -> None:
    router = random(lambda _: UnionBudgetRouter(8, 6, 3, shared=1, private=1))
    with torch.no_grad():
        router.linear.weight.view(3, 6, 8).copy_(router.linear.weight[:6].expand(3, 6, 8).clone())

    assert (router.union(router(X)).kept.sum(1) == 2).all()


def test_stacked_tasks_give_the_one_balance_term() -> None:
    router = random(lambda _: UnionBudgetRouter(8, 6, 3, shared=1, private=1)).double()
    routings = router(X)
    f = sum(routing.chosen().double().mean(0) for routing in routings) / 3
    p = sum(routing.probs.mean(0) for routing in routings) / 3

    one = stacked(routings)
    share = one.counts() / one.counts().sum()

    torch.testing.assert_close(
        6 * (share.double() * one.probs.mean(0)).sum(), 6 / 2 * (f * p).sum(), rtol=0, atol=1e-6
    )


def test_hidden_experts_and_masked_rows_are_left_out() -> None:
    router = UnionBudgetRouter(8, 6, 2, shared=2, private=2, visible=VISIBLE)
    mask = torch.arange(31) > 3

    routings = router(X.float(), mask)

    for routing in routings:
        assert not routing.dense()[:, ~torch.tensor(VISIBLE)].any()
        assert not routing.dense()[~mask].any()
    union = router.union(routings)
    assert (union.kept.sum(1) == 4 * mask).all()
