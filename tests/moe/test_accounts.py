"""Accounts equal closed forms, and read as tables and records."""

import json
from collections.abc import Callable
from itertools import chain, combinations
from typing import Any

import pytest
from torch import nn

from recsys_moe import models
from recsys_moe.errors import RequestError
from recsys_moe.moe.accounts import (
    Account,
    account,
    accounts,
    output_records,
    records,
    table,
    tasks_of,
)
from recsys_moe.moe.accounts_parts import pieces_of
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
    looked_up = copies * SLOTS * DIM
    expected = Account(tasks, tables, network, looked_up, network, flops, flops)
    assert account(model, tasks) == expected


@pytest.mark.parametrize(("build", "sizes", "closed"), CASES)
def test_nothing_is_forgotten_or_counted_twice(
    build: Callable[..., Any], sizes: dict[str, Any], closed: object
) -> None:
    model = build(SPEC, **SIZES, **sizes)

    *_, everything = accounts(model)

    assert everything.tasks == TASKS
    assert everything.parameters == models.num_parameters(model)


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
    with pytest.raises(RequestError, match="a module with `pieces`, got Linear"):
        pieces_of(nn.Linear(2, 2))


def test_accounts_read_as_a_table() -> None:
    rows = [
        Account(("click",), 45, 1234, 15, 617, 2468, 5000),
        Account(("click", "like"), 45, 9, 1, 2, 3, 4, uncounted=("bank.1.0",)),
    ]

    assert table(rows).splitlines() == [
        "| outputs      | embeddings | network | active embeddings | active network "
        "|  FLOPs/row |   if dense |",
        "| ------------ | ---------: | ------: | ----------------: | -------------: "
        "| ---------: | ---------: |",
        "| click        |         45 |   1,234 |                15 |            617 "
        "|      2,468 |      5,000 |",
        "| click + like |         45 |       9 |                 1 |              2 "
        "| 3 + frozen | 4 + frozen |",
    ]


def test_records_are_the_accounts_as_plain_values() -> None:
    model = models.mmoe(SPEC, **SIZES, widths=[H1, H2], num_experts=3)
    rows = accounts(model)

    found = json.loads(json.dumps(records(rows)))

    assert [record.pop("tasks") for record in found] == [list(row.tasks) for row in rows]
    for record, row in zip(found, rows, strict=True):
        assert record.pop("uncounted") == []
        assert record == {name: getattr(row, name) for name in record}
        assert {"parameters", "active_parameters", "flops_per_row"} <= record.keys()


def test_an_output_costs_what_its_chain_needs() -> None:
    model = models.mmoe(SPEC, **SIZES, widths=[H1, H2], num_experts=3)
    outputs = ["p_click", "p_click_and_conversion", "y_amount"]

    first, product, _, everything = output_records(model, SPEC, outputs)

    assert first["outputs"] == ["p_click"]
    assert first["parameters"] == account(model, ["click"]).parameters
    assert product["flops_per_row"] == account(model, ["click", "conversion"]).flops_per_row
    assert everything["outputs"] == outputs
    assert everything["parameters"] == models.num_parameters(model)
    assert len(output_records(model, SPEC, ["p_click"])) == 1


def test_an_account_changes_nothing() -> None:
    model = models.ple(SPEC, **SIZES, **PLE_SIZES)
    model.mixture.eval()
    before = [module.training for module in model.modules()]
    account(model)
    assert [module.training for module in model.modules()] == before
