"""Four planted clusters, eight experts: balance keeps all of them alive and costs no accuracy."""

from functools import cache

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from recsys_moe.moe.anomalies import find_anomalies
from recsys_moe.moe.balance import load
from recsys_moe.moe.balance_losses import BalanceLosses
from recsys_moe.moe.banks import MLPBank
from recsys_moe.moe.dispatch import combine
from recsys_moe.moe.monitor import Monitor
from recsys_moe.moe.monitor_health import Health
from recsys_moe.moe.router_sigmoid import SigmoidRouter
from recsys_moe.moe.router_top_k import TopKRouter

WIDTH, CLUSTERS, E, K, SEEDS, STEPS, INTERVAL = 8, 4, 8, 2, range(5), 250, 50


@cache
def rows(seed: int) -> tuple[Tensor, Tensor]:
    """Return rows around four centres, each with its own law for the label."""
    truth, generator = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    centres_CD = 3 * torch.randn(CLUSTERS, WIDTH, generator=truth)
    weights_CD = 1.5 * torch.randn(CLUSTERS, WIDTH, generator=truth)
    cluster_N = torch.randint(CLUSTERS, (8192,), generator=generator)
    z_ND = torch.randn(8192, WIDTH, generator=generator)
    chance_N = torch.sigmoid((weights_CD[cluster_N] * z_ND).sum(1))
    label_N = (torch.rand(8192, generator=generator) < chance_N).float()
    return centres_CD[cluster_N] + z_ND, label_N


@cache
def trained(seed: int, *, switch: float = 0.0, rate: float | None = None) -> tuple[Health, float]:
    """Train, and return what the Monitor reads at the end and the test AUC.

    Args:
        seed: Of initialisation and batches.
        switch: The coefficient of the Switch loss.
        rate: The step of loss-free balancing, behind a sigmoid router; None for a softmax router.
    """
    torch.manual_seed(seed)
    router = TopKRouter(WIDTH, E, K) if rate is None else SigmoidRouter(WIDTH, E, K)
    bank = MLPBank(E, WIDTH, [16, 1], last_activation=False)
    balance, monitor = BalanceLosses(switch=switch), Monitor(E)
    optimizer = torch.optim.Adam([*router.parameters(), *bank.parameters()], lr=0.01)
    x_ND, label_N = rows(1)
    for step in range(STEPS):
        batch = torch.randint(len(x_ND), (512,))
        routing = router(x_ND[batch])
        logit_B = combine(x_ND[batch], routing, bank)[:, 0]
        loss = F.binary_cross_entropy_with_logits(logit_B, label_N[batch])
        loss = loss + sum(balance([routing]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if isinstance(router, SigmoidRouter) and rate is not None:
            router.update_bias(load(routing), rate)
        monitor.update({"all": routing})
        if step % INTERVAL == INTERVAL - 1:
            health = monitor.read()
    x_ND, label_N = rows(2)
    with torch.no_grad():
        logit_N = combine(x_ND, router(x_ND), bank)[:, 0]
    return health, float(roc_auc_score(label_N, logit_N))


def mean_auc(**settings: float) -> float:
    return sum(trained(seed, **settings)[1] for seed in SEEDS) / len(SEEDS)


def test_without_balance_the_monitor_names_a_dead_expert_in_some_seed() -> None:
    found = [find_anomalies(trained(seed)[0]) for seed in SEEDS]
    assert any(anomaly.name == "dead expert" for anomalies in found for anomaly in anomalies)


@pytest.mark.parametrize("settings", [{"switch": 0.1}, {"rate": 0.01}], ids=["switch", "bias"])
def test_with_balance_no_expert_dies_and_no_accuracy_is_lost(settings: dict[str, float]) -> None:
    assert [trained(seed, **settings)[0].dead() for seed in SEEDS] == [()] * len(SEEDS)
    assert mean_auc(**settings) > mean_auc() - 0.002
