"""Accounts equal closed forms, and what is left of a model's graph when outputs are cut off."""

from collections.abc import Callable, Sequence
from itertools import chain, combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from recsys_moe import models
from recsys_moe.errors import RequestError
from recsys_moe.moe.accounts import Account, account, accounts, table, tasks_of
from recsys_moe.moe.accounts_parts import parts_of
from recsys_moe.spec import Categorical, Column, FeatureSpec, Numeric, Table, Task

DIM, H1, H2, TOWER, SLOTS, CODES = 3, 5, 4, 6, 5, 15
D = 2 * DIM + 1  # two features with codes, one number
SPEC = FeatureSpec(
    dataset="toy",
    columns=(
        Column(name="a", type="string"),
        Column(name="l", type="string", is_list=True),
        Column(name="x", type="float32"),
    ),
    tables=(Table(name="a", num_codes=6, num_oov=1), Table(name="l", num_codes=9, num_oov=2)),
    features=(
        Categorical(name="a", column="a", table="a"),
        Categorical(name="l", column="l", table="l", max_len=4),
        Numeric(
            name="x",
            column="x",
            transform="identity",
            center=0,
            scale=1,
            clip=8,
            missing_flag=False,
        ),
    ),
    tasks=(
        Task(name="click", label="y"),
        Task(name="conversion", label="z", space="click"),
        Task(name="amount", label="v", kind="regression", mean=0.0, scale=1.0),
    ),
    train_rows=1,
)
TASKS = SPEC.task_names
T = len(TASKS)
SIZES = {"embedding_dim": DIM, "tower_widths": [TOWER], "dropout": 0.1, "embedding_dropout": 0.1}
TABLES = CODES * DIM
TOWER_PARAMETERS = H2 * TOWER + TOWER + TOWER + 1
TOWER_FLOPS = 2 * (H2 * TOWER + TOWER)


def expert(width: int) -> int:
    return width * H1 + H1 + H1 * H2 + H2


def expert_flops(width: int) -> int:
    return 2 * (width * H1 + H1 * H2)


def gate(width: int, num_experts: int) -> int:
    return width * num_experts + num_experts


def gate_flops(width: int, num_experts: int) -> int:
    return 2 * width * num_experts + 2 * num_experts * H2


def single_task(num: int) -> tuple[int, int, int]:
    return num * TABLES, num * (expert(D) + TOWER_PARAMETERS), num * (expert_flops(D) + TOWER_FLOPS)


def shared_bottom(num: int) -> tuple[int, int, int]:
    return TABLES, expert(D) + num * TOWER_PARAMETERS, expert_flops(D) + num * TOWER_FLOPS


def mmoe(num: int) -> tuple[int, int, int]:
    parameters = 3 * expert(D) + num * (gate(D, 3) + TOWER_PARAMETERS)
    return TABLES, parameters, 3 * expert_flops(D) + num * (gate_flops(D, 3) + TOWER_FLOPS)


def ple(num: int) -> tuple[int, int, int]:
    """Level 0 feeds everybody through its shared gate; on level 1 a task has its own experts."""
    all_below = 2 * T + 3
    parameters = all_below * expert(D) + gate(D, all_below) + num * gate(D, 5)
    parameters += (2 * num + 3) * expert(H2) + num * (gate(H2, 5) + TOWER_PARAMETERS)
    flops = all_below * expert_flops(D) + gate_flops(D, all_below) + num * gate_flops(D, 5)
    flops += (2 * num + 3) * expert_flops(H2) + num * (gate_flops(H2, 5) + TOWER_FLOPS)
    return TABLES, parameters, flops


PLE_SIZES = {"num_levels": 2, "num_task_experts": 2, "num_shared_experts": 3, "widths": [H1, H2]}
CASES: list[tuple[Callable[..., Any], dict[str, Any], Callable[[int], tuple[int, int, int]]]] = [
    (models.single_task, {"widths": [H1, H2]}, single_task),
    (models.shared_bottom, {"widths": [H1, H2]}, shared_bottom),
    (models.mmoe, {"widths": [H1, H2], "num_experts": 3}, mmoe),
    (models.ple, PLE_SIZES, ple),
]
SUBSETS = list(chain.from_iterable(combinations(TASKS, n) for n in range(1, T + 1)))


@pytest.mark.parametrize(("build", "sizes", "closed"), CASES)
@pytest.mark.parametrize("tasks", SUBSETS, ids="+".join)
def test_a_wiring_costs_its_closed_form(
    build: Callable[..., Any],
    sizes: dict[str, Any],
    closed: Callable[[int], tuple[int, int, int]],
    tasks: tuple[str, ...],
) -> None:
    model = build(SPEC, **SIZES, **sizes)
    copies = len(tasks) if build is models.single_task else 1

    tables, network, flops = closed(len(tasks))
    expected = Account(tasks, tables, network, copies * SLOTS * DIM, network, flops)
    assert account(model, tasks) == expected


@pytest.mark.parametrize(("build", "sizes", "closed"), CASES)
def test_nothing_is_forgotten_or_counted_twice(
    build: Callable[..., Any], sizes: dict[str, Any], closed: object
) -> None:
    model = build(SPEC, **SIZES, **sizes)

    *_, everything = accounts(model)

    assert everything.tasks == TASKS
    assert everything.parameters == models.num_parameters(model)


class Only(nn.Module):
    """A model that answers for some tasks alone."""

    def __init__(self, model: nn.Module, tasks: Sequence[str]) -> None:
        super().__init__()
        self.model, self.tasks = model, tasks

    def forward(self, codes: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
        logits = self.model(codes, numbers)
        return tuple(logits[task] for task in self.tasks)


@pytest.mark.parametrize("tasks", [("click",), ("click", "conversion"), TASKS], ids="+".join)
@pytest.mark.parametrize(("build", "sizes"), [case[:2] for case in CASES])
def test_an_account_is_what_the_graph_of_those_outputs_needs(
    build: Callable[..., Any], sizes: dict[str, Any], tasks: tuple[str, ...]
) -> None:
    rows = 7
    model = Only(build(SPEC, **SIZES, **sizes), tasks).eval()
    inputs = (torch.ones(rows, SLOTS, dtype=torch.int32), torch.zeros(rows, 1))
    graph = torch.export.export(model, inputs).module()
    graph.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    graph.recompile()
    used = [node.target for node in graph.graph.nodes if node.op == "get_attr" and node.users]
    parameters = dict(graph.named_parameters())
    with FlopCounterMode(display=False) as counter:
        graph(*inputs)

    found = account(model.model, tasks)

    assert found.parameters == sum(parameters[n].numel() for n in set(used) if n in parameters)
    assert found.flops_per_row * rows == counter.get_total_flops()


def test_outputs_need_the_tasks_of_their_chain() -> None:
    assert tasks_of(SPEC, ["p_click"]) == ("click",)
    assert tasks_of(SPEC, ["y_amount", "p_click_and_conversion"]) == TASKS
    assert tasks_of(SPEC, ["logit_conversion"]) == ("conversion",)
    with pytest.raises(RequestError, match="Did you mean 'p_click'"):
        tasks_of(SPEC, ["p_clik"])


def test_what_is_not_known_is_refused() -> None:
    model = models.mmoe(SPEC, **SIZES, widths=[H1, H2], num_experts=3)

    with pytest.raises(RequestError, match="Did you mean 'click'"):
        account(model, ["clik"])
    with pytest.raises(RequestError, match="a module with `parts`, got Linear"):
        parts_of(nn.Linear(2, 2))


def test_accounts_read_as_a_table() -> None:
    rows = [
        Account(("click",), 45, 1234, 15, 617, 2468),
        Account(("click", "like"), 45, 9, 1, 2, 3),
    ]

    assert table(rows).splitlines() == [
        "| outputs      | embeddings | network | active embeddings | active network | FLOPs/row |",
        "| ------------ | ---------: | ------: | ----------------: | -------------: | --------: |",
        "| click        |         45 |   1,234 |                15 |            617 |     2,468 |",
        "| click + like |         45 |       9 |                 1 |              2 |         3 |",
    ]


def test_an_account_changes_nothing() -> None:
    model = models.ple(SPEC, **SIZES, **PLE_SIZES)
    model.mixture.eval()
    before = [module.training for module in model.modules()]
    account(model)
    assert [module.training for module in model.modules()] == before
