"""Every architecture equals its formula, written out in NumPy float64 from the same weights."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from recsys_moe import models
from recsys_moe.errors import RequestError
from recsys_moe.spec import Categorical, Column, FeatureSpec, Numeric, Table, Task

Weights = Mapping[str, np.ndarray]
DIM, ROWS = 3, 11
SIZES = {"embedding_dim": DIM, "tower_widths": [4], "dropout": 0.0, "embedding_dropout": 0.0}
SPEC = FeatureSpec(
    dataset="toy",
    columns=(
        Column(name="a", type="string"),
        Column(name="b", type="string"),
        Column(name="l", type="string", is_list=True),
        Column(name="x", type="float32"),
    ),
    tables=(Table(name="a", num_codes=6, num_oov=1), Table(name="shared", num_codes=9, num_oov=2)),
    features=(
        Categorical(name="a", column="a", table="a"),
        Categorical(name="l", column="l", table="shared", max_len=4),
        Categorical(name="b", column="b", table="shared"),
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
    tasks=(Task(name="click", label="y"), Task(name="like.it", label="z")),
    train_rows=1,
)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    a = torch.randint(1, 6, (ROWS, 1), generator=generator)
    lists = torch.randint(1, 9, (ROWS, 4), generator=generator)
    lengths = torch.arange(ROWS) % 5  # empty lists too
    lists = lists * (torch.arange(4) < lengths[:, None])
    b = torch.randint(1, 9, (ROWS, 1), generator=generator)
    codes = torch.cat([a, lists, b], dim=1).int()
    return codes, torch.randn(ROWS, 1, generator=generator, dtype=torch.float64)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def embedded(w: Weights, prefix: str) -> np.ndarray:
    codes, numbers = (tensor.numpy() for tensor in inputs())
    table = w[f"{prefix}embeddings.weight_Vd"]
    rows = []
    for code, number in zip(codes, numbers, strict=True):
        present = [table[6 + c] for c in code[1:5] if c != 0]
        pooled = np.mean(present, axis=0) if present else np.zeros(DIM)
        rows.append(np.concatenate([table[code[0]], pooled, table[6 + code[5]], number]))
    return np.array(rows)


def expert(w: Weights, bank: str, e: int, x: np.ndarray) -> np.ndarray:
    for layer in range(2):
        x = relu(x @ w[f"{bank}.weights_EOI.{layer}"][e].T + w[f"{bank}.biases_EO.{layer}"][e])
    return x


def gate(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return softmax(x @ w[f"{name}.linear.weight"].T + w[f"{name}.linear.bias"])


def mixed(weights: np.ndarray, outputs: list[np.ndarray]) -> np.ndarray:
    return sum(weights[:, [e]] * output for e, output in enumerate(outputs))


def tower(w: Weights, prefix: str, task: int, h: np.ndarray) -> np.ndarray:
    name = f"{prefix}towers.{task}"
    h = relu(h @ w[f"{name}.hidden.0.weight"].T + w[f"{name}.hidden.0.bias"])
    return (h @ w[f"{name}.logit.weight"].T + w[f"{name}.logit.bias"])[:, 0]


def single_task(w: Weights) -> list[np.ndarray]:
    return [
        tower(w, p, 0, expert(w, f"{p}mixture.bank", 0, embedded(w, p)))
        for p in ("models.0.", "models.1.")
    ]


def shared_bottom(w: Weights) -> list[np.ndarray]:
    h = expert(w, "mixture.bank", 0, embedded(w, ""))
    return [tower(w, "", t, h) for t in range(2)]


def mmoe(w: Weights) -> list[np.ndarray]:
    x = embedded(w, "")
    outputs = [expert(w, "mixture.bank", e, x) for e in range(3)]
    return [tower(w, "", t, mixed(gate(w, f"mixture.gates.{t}", x), outputs)) for t in range(2)]


def ple(w: Weights) -> list[np.ndarray]:
    x_tasks, x_shared = [embedded(w, "")] * 2, embedded(w, "")
    for level in range(3):
        name = f"mixture.levels.{level}"
        own = [
            [expert(w, f"{name}.task_banks.{t}", e, x_tasks[t]) for e in range(2)] for t in range(2)
        ]
        shared = [expert(w, f"{name}.shared_bank", e, x_shared) for e in range(3)]
        x_new = [
            mixed(gate(w, f"{name}.task_gates.{t}", x_tasks[t]), own[t] + shared) for t in range(2)
        ]
        if level < 2:
            x_shared = mixed(gate(w, f"{name}.shared_gate", x_shared), own[0] + own[1] + shared)
        x_tasks = x_new
    return [tower(w, "", t, x_tasks[t]) for t in range(2)]


PLE_SIZES = {"num_levels": 3, "num_task_experts": 2, "num_shared_experts": 3, "widths": [5, 4]}
CASES: list[tuple[Callable[..., Any], dict[str, Any], Callable[[Weights], list[np.ndarray]]]] = [
    (models.single_task, {"widths": [5, 4]}, single_task),
    (models.shared_bottom, {"widths": [5, 4]}, shared_bottom),
    (models.mmoe, {"widths": [5, 4], "num_experts": 3}, mmoe),
    (models.ple, PLE_SIZES, ple),
]


@pytest.mark.parametrize(("build", "sizes", "reference"), CASES)
def test_the_model_is_its_formula(
    build: Callable[..., Any], sizes: dict[str, Any], reference: Callable[[Weights], list[Any]]
) -> None:
    torch.manual_seed(0)
    model = build(SPEC, **SIZES, **sizes).double()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}

    logits = model(*inputs())

    assert list(logits) == ["click", "like.it"]
    for logit, expected in zip(logits.values(), reference(weights), strict=True):
        np.testing.assert_allclose(logit.detach().numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("build", "sizes", "reference"), CASES)
def test_a_row_alone_is_the_row_in_a_batch(
    build: Callable[..., Any], sizes: dict[str, Any], reference: object
) -> None:
    model = build(SPEC, **SIZES, **sizes).double().eval()
    codes, numbers = inputs()

    together = model(codes, numbers)["click"]
    alone = torch.cat([model(codes[[i]], numbers[[i]])["click"] for i in range(ROWS)])

    torch.testing.assert_close(alone, together, rtol=0, atol=1e-12)


def test_single_task_models_share_nothing() -> None:
    model = models.single_task(SPEC, **SIZES, widths=[5, 4])
    codes, numbers = inputs()

    model(codes, numbers.float())["click"].sum().backward()

    assert all(p.grad is not None for p in model.models[0].parameters())
    assert all(p.grad is None for p in model.models[1].parameters())


def test_a_pad_slot_learns_nothing_from_a_list() -> None:
    model = models.shared_bottom(SPEC, **SIZES, widths=[5, 4])
    codes, numbers = inputs()
    codes[:, [0, 5]] = 1  # only lists could reach the pad row of their table

    model(codes, numbers.float())["click"].sum().backward()

    assert model.embeddings.weight_Vd.grad is not None
    assert model.embeddings.weight_Vd.grad[6].abs().max() == 0


def test_a_size_of_nothing_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match=r"model.num_experts: wanted .* got 0"):
        models.mmoe(SPEC, **SIZES, widths=[4], num_experts=0)
