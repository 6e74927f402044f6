"""A Monitor's numbers are those of a count by hand, and what is wrong is said in words."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from recsys_moe.errors import CollapseError, RequestError
from recsys_moe.moe.anomalies import Anomaly, fail_on_collapse, find_anomalies
from recsys_moe.moe.balance_losses import BalanceLosses
from recsys_moe.moe.monitor import Monitor
from recsys_moe.moe.monitor_health import Health
from recsys_moe.moe.routing import Routing

E, K, N = 6, 2, 40


def top_k(logits_NE: Tensor, k: int = K) -> Routing:
    top = logits_NE.topk(k)
    return Routing(top.values.softmax(-1), top.indices, logits_NE.softmax(-1), logits_NE)


def dense(weights_NE: Tensor) -> Routing:
    return Routing(weights_NE, None, weights_NE, weights_NE.log())


def random(rows: int = N, seed: int = 0) -> Routing:
    generator = torch.Generator().manual_seed(seed)
    return top_k(torch.randn(rows, E, generator=generator, dtype=torch.float64))


def read(routings: Mapping[str, Routing], num_experts: int = E, **settings: object) -> Health:
    monitor = Monitor(num_experts, list(routings), **settings)  # type: ignore[arg-type]
    monitor.update(routings)
    return monitor.read()


def names(health: Health) -> list[str]:
    return [anomaly.name for anomaly in find_anomalies(health)]


def by_name(health: Health, name: str) -> list[Anomaly]:
    return [anomaly for anomaly in find_anomalies(health) if anomaly.name == name]


def test_an_interval_is_counted_by_hand() -> None:
    monitor = Monitor(E)
    batches = [random(seed=1), random(7, seed=2), random(0, seed=3)]
    mask_N = torch.arange(N) % 3 != 0
    count, mass, prob = [0.0] * E, [0.0] * E, [0.0] * E
    for batch, mask in zip(batches, (mask_N, None, None), strict=True):
        monitor.update({"all": batch}, mask)
        for n in range(len(batch.probs)):
            if mask is None or mask[n]:
                for e, weight in zip(
                    batch.index[n].tolist(), batch.weights[n].tolist(), strict=True
                ):
                    count[e] += 1
                    mass[e] += weight
                for e in range(E):
                    prob[e] += float(batch.probs[n, e])

    health = monitor.read()

    rows = int(mask_N.sum()) + 7
    assert health.rows == (rows,)
    assert health.load == tuple(count)
    assert health.mass[0] == pytest.approx(mass, abs=1e-12)
    assert health.probs[0] == pytest.approx(prob, abs=1e-12)
    assert health.fair_load == pytest.approx([rows * K / E] * E)
    assert health.max_vio == pytest.approx(max(count) / (rows * K / E) - 1)
    f = [c / sum(count) for c in count]
    assert health.effective_experts == pytest.approx(
        math.exp(-sum(v * math.log(v) for v in f if v))
    )
    p = [v / rows for v in prob]
    assert health.gate_entropy == pytest.approx(-sum(v * math.log(v) for v in p) / math.log(E))
    assert health.metrics()["experts/slots_per_row"] == K


def test_reading_begins_a_new_interval() -> None:
    monitor = Monitor(E)
    monitor.update({"all": random()})
    first = monitor.read()
    empty = monitor.read()
    monitor.update({"all": random()})

    assert monitor.read() == first
    assert (empty.rows, empty.effective_experts, empty.max_vio, empty.dead()) == ((0,), 0, 0, ())
    fail_on_collapse(empty)
    assert not find_anomalies(empty)


def test_balance_and_collapse_have_their_known_numbers() -> None:
    even = read({"all": top_k(torch.eye(E).repeat(5, 1), 1)})
    collapsed = read({"all": top_k(60 * torch.eye(E)[:1].repeat(5, 1), 1)})

    assert even.effective_experts == pytest.approx(E)
    assert even.gate_entropy == pytest.approx(1)
    assert even.max_vio == pytest.approx(0)
    assert collapsed.effective_experts == pytest.approx(1)
    assert collapsed.gate_entropy == pytest.approx(0, abs=1e-6)
    assert collapsed.max_vio == pytest.approx(E - 1)
    assert collapsed.dead() == (1, 2, 3, 4, 5)


def test_an_expert_that_dies_is_named_in_the_first_interval_in_which_it_is_dead() -> None:
    """An interval of life, however long, does not hide it."""
    monitor = Monitor(E, name="level 0")
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        monitor.update({"all": top_k(torch.randn(N, E, generator=generator))})
    assert "dead expert" not in names(monitor.read())

    forced_E = torch.zeros(E)
    forced_E[4] = -1e9
    for _ in range(10):
        monitor.update({"all": top_k(torch.randn(N, E, generator=generator) + forced_E)})
    health = monitor.read()

    assert health.dead() == (4,)
    (dead,) = by_name(health, "dead expert")
    assert dead.experts == (4,)
    expected = "level 0: expert 4 is dead: 0 of 800 slots, 0.00% of its fair share of 133"
    assert dead.message == expected
    fail_on_collapse(health)


@pytest.mark.parametrize(("rows_of_last", "is_dead"), [(1, True), (2, False)])
def test_dead_is_less_than_a_hundredth_of_the_fair_load(rows_of_last: int, is_dead: bool) -> None:
    index_N = torch.zeros(400, dtype=torch.int64)  # fair: 200 for each of two
    index_N[:rows_of_last] = 1
    health = read({"all": top_k(60 * torch.eye(2)[index_N], 1)}, 2)

    assert health.dead() == ((1,) if is_dead else ())


def test_a_dense_gate_kills_by_weight() -> None:
    weights_NE = torch.tensor([[0.499, 0.5, 0.001]]).repeat(N, 1)
    assert read({"all": dense(weights_NE)}, 3).dead() == (2,)


def test_training_stops_at_a_collapse_if_it_is_asked_to() -> None:
    health = read({"all": top_k(60 * torch.eye(E)[:1].repeat(5, 1), 1)})

    with pytest.raises(CollapseError, match=r"got 5 \(1, 2, 3, 4, 5\), as if there were 1.00"):
        fail_on_collapse(health)
    with pytest.raises(CollapseError):
        fail_on_collapse(health, dead_share=5 / 6)
    fail_on_collapse(health, dead_share=0.9)


def test_watching_leaves_dropout_out_and_the_bank_as_it_was() -> None:
    class Bank(nn.Module):
        def forward(self, x_ND: Tensor) -> Tensor:
            h_NE = nn.functional.dropout(x_ND, 0.9, self.training)
            return h_NE.unsqueeze(-1)

    bank, monitor = Bank(), Monitor(3, sample_rows=10)
    monitor.watch(bank, torch.ones(50, 3))

    assert bank.training
    assert monitor.read().zero_share == (0, 0, 0)
    assert monitor.read().zero_share is None


def test_what_was_not_finished_continues_from_a_checkpoint() -> None:
    whole, first, second = Monitor(E), Monitor(E), Monitor(E)
    first.update({"all": random(seed=1)})
    second.load_state_dict(first.state_dict())
    second.update({"all": random(seed=2)})
    for seed in (1, 2):
        whole.update({"all": random(seed=seed)})

    assert second.read() == whole.read()


@pytest.mark.gpu
def test_nothing_waits_for_the_device() -> None:
    logits_NE = torch.randn(N, E, device="cuda")
    mask_N = torch.arange(N, device="cuda") % 3 != 0
    monitor = Monitor(E).cuda()
    losses = BalanceLosses(switch=0.1, z=0.1, importance=0.1, accumulate=True)
    bank = nn.Sequential(nn.Linear(E, 3 * E), nn.Unflatten(1, (E, 3))).cuda()
    for _ in range(2):  # the second time warm
        torch.cuda.set_sync_debug_mode("error")
        try:
            for routing in (top_k(logits_NE), dense(logits_NE.softmax(-1))):
                for mask in (None, mask_N):
                    monitor.update({"all": routing}, mask)
                    losses([routing], mask)
                losses.step_done()
            monitor.watch(bank, logits_NE)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sum(monitor.read().rows) == 4 * (N + int(mask_N.sum()))


def test_an_update_compiles_whole() -> None:
    plain, compiled = Monitor(E), Monitor(E)
    update = torch.compile(compiled.update, backend="eager", fullgraph=True)
    for seed in range(3):
        plain.update({"all": random(seed=seed)})
        update({"all": random(seed=seed)})

    assert compiled.read() == plain.read()


def test_sizes_must_agree() -> None:
    with pytest.raises(RequestError, match=r"monitor\.owners"):
        Monitor(3, ["click"], owners=("click", None))
    with pytest.raises(RequestError, match=r"monitor\.owners"):
        Monitor(2, ["click"], owners=("like", None))
    with pytest.raises(RequestError, match=r"monitor\.visible"):
        Monitor(2, ["click"], visible=[[True]])
