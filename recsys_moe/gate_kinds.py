"""Gates of a model: one for each task or one for all, and what they know of experts added later."""

from collections.abc import Callable, Sequence

from recsys_moe.changes import UNCHANGED, Changes
from recsys_moe.errors import RequestError
from recsys_moe.moe.router_base import Router
from recsys_moe.moe.router_union_budget import UnionBudgetRouter

MakeRouter = Callable[..., Router]


def gates(
    router: MakeRouter,
    width: int,
    num_experts: int,
    num_gates: int,
    *,
    changes: Changes = UNCHANGED,
) -> Sequence[Router] | UnionBudgetRouter:
    """Return a router for each gate, or the one that decides for all of them together."""
    if not _is_joint(router):
        return [gate(router, width, num_experts, changes=changes) for _ in range(num_gates)]
    joint = router(width, num_experts, num_gates)
    assert isinstance(joint, UnionBudgetRouter)
    _grow(joint, changes)
    return joint


def gate(
    router: MakeRouter, width: int, num_experts: int, *, changes: Changes = UNCHANGED
) -> Router:
    """Return a router over experts of which those added later are the last.

    Args:
        router: The kind.
        width: Width of what it reads.
        num_experts: The experts that it sees.
        changes: Which of them were added later.
    """
    if _is_joint(router):
        raise RequestError(
            "router=union_budget",
            wanted="model=mmoe or model=moe, whose tasks share one pool of experts",
            got="a model whose tasks have experts of their own",
        )
    made = router(width, num_experts - sum(changes.added_experts[: changes.opened]))
    _grow(made, changes)
    return made


def _grow(router: Router, changes: Changes) -> None:
    for time, count in enumerate(changes.added_experts):
        router.grow(count, is_open=time < changes.opened)


def _is_joint(router: MakeRouter) -> bool:
    return getattr(router, "func", router) is UnionBudgetRouter
