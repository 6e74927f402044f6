"""What is wrong with experts is found by name, and said with its numbers."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from recsys_moe.moe.anomalies import Anomaly, find_anomalies
from recsys_moe.moe.monitor import Monitor
from recsys_moe.moe.monitor_health import Health
from recsys_moe.moe.routing import Routing

N = 40


def dense(weights_NE: Tensor) -> Routing:
    return Routing(weights_NE, None, weights_NE, weights_NE.log())


def read(routings: Mapping[str, Routing], num_experts: int, **settings: object) -> Health:
    monitor = Monitor(num_experts, list(routings), **settings)  # type: ignore[arg-type]
    monitor.update(routings)
    return monitor.read()


def names(health: Health) -> list[str]:
    return [anomaly.name for anomaly in find_anomalies(health)]


def by_name(health: Health, name: str) -> list[Anomaly]:
    return [anomaly for anomaly in find_anomalies(health) if anomaly.name == name]


def test_a_shared_expert_of_one_task_is_degraded() -> None:
    click = torch.tensor([[0.5, 0.48, 0.02]]).repeat(N, 1)
    like = torch.tensor([[0.5, 0.02, 0.48]]).repeat(7, 1)
    health = read({"click": dense(click), "like": dense(like)}, 3)

    assert health.occupancy == pytest.approx([0.5, 0.96, 0.96])
    assert health.occupants[1:] == ("click", "like")
    second, third = by_name(health, "expert degradation")
    assert (second.experts, third.experts) == ((1,), (2,))
    assert second.message == (
        "experts: expert degradation of shared expert 1: task 'click' has 96.0% of its gate mass "
        "(more than 90%), 2 tasks see it"
    )
    assert not by_name(read({"click": dense(click)}, 3), "expert degradation")


def test_a_dead_expert_and_a_tasks_own_are_not_called_degraded() -> None:
    click = torch.tensor([[0.5, 0.495, 0.005]]).repeat(N, 1)
    like = torch.tensor([[0.98, 0.02, 0.0]]).repeat(N, 1)
    health = read(
        {"click": dense(click), "like": dense(like)},
        3,
        owners=(None, "click", None),
        visible=[[True] * 3] * 2,
    )

    assert health.dead() == (2,)
    assert min(health.occupancy[1:]) > 0.9
    assert "expert degradation" not in names(health)


OWNERS = ("click", "like", None, None)


def cgc(click_own: float, like_own: float) -> Health:
    """Expert 0 is click's, 1 like's, 2 and 3 are shared; a gate does not see the other's."""
    click = [click_own, 0.0, (1 - click_own) / 2, (1 - click_own) / 2]
    like = [0.0, like_own, (1 - like_own) / 2, (1 - like_own) / 2]
    routings = {"click": dense(torch.tensor([click] * N)), "like": dense(torch.tensor([like] * N))}
    return read(routings, 4, owners=OWNERS, name="top level")


def test_a_task_that_ignores_its_own_experts_lets_them_underfit() -> None:
    (found,) = by_name(cgc(0.4, 0.02), "expert underfitting")

    assert found.experts == (1,)
    assert found.message == (
        "top level: expert underfitting of task 'like': its own experts 1 get 2.00% of its gate "
        "mass, their fair part is 33.3%; the shared ones get 98.00%"
    )
    assert "expert underfitting" not in names(cgc(0.4, 0.04))


def test_a_tasks_own_expert_is_not_degraded_and_is_owed_one_gate_only() -> None:
    health = cgc(1 / 3, 1 / 3)

    assert health.occupancy[:2] == (1.0, 1.0)
    assert health.fair_load == pytest.approx([N / 3, N / 3, 2 * N / 3, 2 * N / 3])
    assert health.max_vio == pytest.approx(0, abs=1e-6)
    assert health.gate_entropy == pytest.approx(1)
    assert not find_anomalies(health)


def test_an_expert_of_zeros_or_of_another_scale_has_collapsed() -> None:
    generator = torch.Generator().manual_seed(0)
    h_NEO = torch.randn(64, 4, 8, generator=generator).abs()
    h_NEO[:, 1] *= torch.rand(64, 8, generator=generator) > 0.95
    h_NEO[:, 2] *= 0.05
    monitor = Monitor(4)
    monitor.observe(h_NEO)
    health = monitor.read()

    assert health.zero_share == pytest.approx((h_NEO == 0).float().mean((0, 2)).tolist())
    assert health.scale == pytest.approx(h_NEO.square().mean((0, 2)).sqrt().tolist())
    zeros, scale = by_name(health, "expert collapse")
    assert zeros.experts == (1,)
    assert "of its outputs are 0 (more than 90%)" in zeros.message
    assert scale.experts == (2,)
    assert "its outputs' scale is 0.0" in scale.message


def test_experts_that_answer_alike_are_similar_whatever_they_add() -> None:
    h_NEO = torch.randn(64, 3, 8, generator=torch.Generator().manual_seed(0))
    h_NEO[:, 2] = 2 * h_NEO[:, 0] + 5
    monitor = Monitor(3)
    monitor.observe(h_NEO)
    health = monitor.read()

    for a in range(3):
        for b in range(3):
            x, y = ((h - h.mean(0)).flatten() for h in (h_NEO[:, a], h_NEO[:, b]))
            assert health.similarity[a][b] == pytest.approx(float(x @ y / x.norm() / y.norm()))
    (found,) = by_name(health, "similar experts")
    assert found.experts == (0, 2)
    assert health.metrics()["experts/max_similarity"] == pytest.approx(1)
