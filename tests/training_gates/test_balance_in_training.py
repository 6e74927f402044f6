"""Balance losses and selection biases as the Ranker applies them, step by step."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from recsys_moe.batch import Batch
from recsys_moe.errors import RequestError
from recsys_moe.modules.gated import Gated
from recsys_moe.moe.balance import load_cv2, switch_loss
from recsys_moe.moe.router_sigmoid import SigmoidRouter
from recsys_moe.moe.router_union_budget import stacked
from recsys_moe.moe.routing import Routing
from recsys_moe.ranker import Ranker
from tests.training_gates.ranking import make_ranker, train_rows

MakeFeatures = Callable[..., Path]
RATE = 1e-3


@pytest.fixture(scope="module")
def features(make_features: MakeFeatures) -> Path:
    return make_features(rows=300)


def gates(ranker: Ranker, batch: Batch) -> Sequence[Gated]:
    with torch.no_grad():
        return ranker.model.routed(batch.codes, batch.numbers)[1]  # type: ignore[operator]


def biases(ranker: Ranker) -> list[Tensor]:
    routers = [m for m in ranker.model.modules() if isinstance(m, SigmoidRouter)]
    return [router.selection_bias.clone() for router in routers]


def add_counts(count_E: Tensor, router: SigmoidRouter, _: object, routing: Routing) -> None:
    assert routing.index is not None
    count_E += torch.bincount(routing.index.flatten(), minlength=router.num_experts)


def task_losses(ranker: Ranker, batch: Batch) -> Tensor:
    losses = ranker.loss(ranker.model(batch.codes, batch.numbers), batch)
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("balance", ["auto", "none", "custom"])
def test_without_a_coefficient_the_loss_is_that_of_the_tasks(
    features: Path, tmp_path: Path, balance: str
) -> None:
    """For softmax, the default, that is so with every choice; bit for bit."""
    ranker, batch = (
        make_ranker(features, tmp_path, f"balance={balance}"),
        train_rows(features, slice(0, 64)),
    )

    assert ranker.balance.names == ()
    assert torch.equal(ranker.training_step(batch, 0), task_losses(ranker, batch))


@pytest.mark.parametrize("model", ["mmoe", "ple"])
def test_top_k_adds_switchs_loss_averaged_over_gates(
    features: Path, tmp_path: Path, model: str
) -> None:
    ranker = make_ranker(features, tmp_path, f"model={model}", "router=top_k")
    batch = train_rows(features, slice(0, 64))
    each = [switch_loss(gate.routing) for gate in gates(ranker, batch)]

    added = ranker.training_step(batch, 0) - task_losses(ranker, batch)

    assert len(each) == 2
    torch.testing.assert_close(added, 0.01 * sum(each) / 2, atol=2e-7, rtol=0)
    assert ranker.balance.names == ("switch",)


def test_a_gate_of_ple_has_the_noisy_load_that_it_has_alone(features: Path, tmp_path: Path) -> None:
    """Its routing is numbered over all experts of the level; the loss is that of its own."""
    ranker = make_ranker(features, tmp_path, "router=noisy_top_k")
    ranker.train()
    alone: list[Tensor] = []
    for gate in ranker.model.mixture.levels[0].task_gates:  # type: ignore[union-attr,index]
        gate.register_forward_hook(lambda _, __, routing: alone.append(load_cv2(routing)))
    with torch.no_grad():
        for parameter in ranker.model.mixture.parameters():  # type: ignore[union-attr]
            parameter.normal_(std=0.3)

    found = gates(ranker, train_rows(features, slice(0, 64)))

    for gate, expected in zip(found, alone, strict=True):
        torch.testing.assert_close(load_cv2(gate.routing), expected)
    assert all(value > 1e-4 for value in alone)


def test_a_joint_router_has_one_loss_over_the_rows_of_all_tasks(
    features: Path, tmp_path: Path
) -> None:
    ranker = make_ranker(features, tmp_path, "model=mmoe", "router=union_budget")
    batch = train_rows(features, slice(0, 64))
    found = gates(ranker, batch)

    losses = ranker.balance.losses(found)

    expected = 0.01 * switch_loss(stacked([gate.routing for gate in found]))
    torch.testing.assert_close(losses["switch"], expected)


@pytest.mark.parametrize("model", ["mmoe", "ple", "moe"])
def test_a_step_moves_each_bias_by_the_rate_towards_the_mean_load(
    features: Path, tmp_path: Path, model: str
) -> None:
    """Of two micro-batches by the loads of both, once, and in the router's own numbering."""
    ranker = make_ranker(features, tmp_path, f"model={model}", "router=sigmoid", micro_batches=2)
    before, counts = biases(ranker), [torch.zeros(len(bias)) for bias in biases(ranker)]
    routers = [m for m in ranker.model.modules() if isinstance(m, SigmoidRouter)]
    for router, count_E in zip(routers, counts, strict=True):
        router.register_forward_hook(partial(add_counts, count_E))

    for rows in (slice(0, 64), slice(64, 100)):
        ranker.training_step(train_rows(features, rows), 0)
        assert all(map(torch.equal, biases(ranker), before))
    ranker.on_before_optimizer_step(None)

    for old_E, new_E, count_E in zip(before, biases(ranker), counts, strict=True):
        assert count_E.sum() == 200  # two slots a row
        torch.testing.assert_close(new_E - old_E, RATE * torch.sign(count_E.mean() - count_E))
    ranker.on_before_optimizer_step(None)  # nothing is counted twice
    moved = [new_E - old_E for old_E, new_E in zip(before, biases(ranker), strict=True)]
    assert max(float(delta.abs().max()) for delta in moved) == pytest.approx(RATE)


def test_a_frozen_router_keeps_its_bias(features: Path, tmp_path: Path) -> None:
    ranker = make_ranker(features, tmp_path, "model=mmoe", "router=sigmoid")
    ranker.model.mixture.gates[0].requires_grad_(False)  # type: ignore[union-attr,index]

    ranker.training_step(train_rows(features, slice(0, 64)), 0)
    ranker.on_before_optimizer_step(None)

    frozen, free = biases(ranker)
    assert not frozen.any()
    assert free.any()


@pytest.mark.parametrize("router", ["softmax", "top_k", "noisy_top_k", "sigmoid", "top_p"])
def test_routers_keep_float32_under_autocast(features: Path, tmp_path: Path, router: str) -> None:
    ranker = make_ranker(features, tmp_path, f"router={router}")
    batch, kinds = train_rows(features, slice(0, 64)), []
    for tower in ranker.model.towers:  # type: ignore[union-attr]
        tower.register_forward_hook(lambda _, __, logit_B: kinds.append(logit_B.dtype))
    seen: list[Gated] = []
    losses = ranker.balance.losses
    ranker.balance.losses = lambda gated: (seen.extend(gated), losses(gated))[1]  # type: ignore[method-assign]

    with torch.autocast("cpu", torch.bfloat16):
        total = ranker.training_step(batch, 0)

    assert kinds == [torch.bfloat16] * 2
    for gate in seen:
        routing = gate.routing
        assert {routing.logits.dtype, routing.weights.dtype, routing.probs.dtype} == {torch.float32}
    assert total.dtype == torch.float32
    total.backward()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["balance=custom", "balance.load=0.1"],
            "balance.load: wanted 0 for all routers but Noisy",
        ),
        (["balance=custom", "balance.switch=-1"], "balance.switch: wanted a number >= 0"),
        (["balance=custom", "balance.bias_rate=-1"], "balance.bias_rate: wanted a number >= 0"),
        (["balance.bias_rate=fast"], "balance.bias_rate: wanted a number >= 0"),
        (
            ["model=shared_bottom", "balance=custom", "balance.z=0.1"],
            "balance=custom: wanted a model with gates",
        ),
    ],
)
def test_what_a_model_cannot_have_is_refused(
    features: Path, tmp_path: Path, overrides: list[str], line: str
) -> None:
    with pytest.raises(RequestError, match=line.replace("(", r"\(")):
        make_ranker(features, tmp_path, *overrides)


def test_several_processes_add_up_over_all(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = make_ranker(features, tmp_path)
    assert (ranker.balance.group, ranker.watch.group) == (None, None)
    store = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        ranker.on_fit_start()
        assert ranker.balance.group is ranker.watch.group is dist.group.WORLD
    finally:
        dist.destroy_process_group()
