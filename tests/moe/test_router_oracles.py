"""Published implementations agree: transformers and soft-moe-pytorch."""

import pytest
import torch
from torch import Tensor, nn

from recsys_moe.moe.router_sigmoid import SigmoidRouter
from recsys_moe.moe.router_soft_moe import SoftMoERouter
from recsys_moe.moe.router_top_k import TopKRouter
from recsys_moe.moe.routing import Routing


def placed(index_NK: Tensor, weights_NK: Tensor, size: int) -> Tensor:
    return torch.zeros(len(index_NK), size).scatter(1, index_NK, weights_NK.float())


def assert_same(routing: Routing, index_NK: Tensor, weights_NK: Tensor) -> None:
    expected = placed(index_NK, weights_NK, routing.num_experts)
    assert torch.equal(routing.chosen(), expected > 0)
    torch.testing.assert_close(routing.dense(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", [2, 4])
def test_mixtral(k: int) -> None:
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    config = mixtral.MixtralConfig(hidden_size=32, num_local_experts=8, num_experts_per_tok=k)
    published, router = mixtral.MixtralTopKRouter(config), TopKRouter(32, 8, k)
    published.weight.data.copy_(router.linear.weight.data)
    x = torch.randn(500, 32)

    logits, weights, index = published(x)

    routing = router(x)
    assert_same(routing, index, weights)
    torch.testing.assert_close(routing.logits, logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (4, 2)])
@pytest.mark.parametrize("renormalise", [True, False])
def test_deepseek_v3(groups: int, kept: int, renormalise: bool) -> None:
    deepseek = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    config = deepseek.DeepseekV3Config(
        hidden_size=32,
        n_routed_experts=16,
        num_experts_per_tok=4,
        n_group=groups,
        topk_group=kept,
        norm_topk_prob=renormalise,
        routed_scaling_factor=2.5,
    )
    published = deepseek.DeepseekV3TopkRouter(config)
    router = SigmoidRouter(
        32, 16, 4, scale=2.5, renormalise=renormalise, num_groups=groups, groups_kept=kept
    )
    router.selection_bias.normal_(std=0.1)
    published.weight.data.copy_(router.linear.weight.data)
    published.e_score_correction_bias.data.copy_(router.selection_bias)
    x = torch.randn(500, 32)

    logits, weights, index = published(x)

    routing = router(x)
    assert_same(routing, index, weights)
    torch.testing.assert_close(routing.logits, logits, rtol=0, atol=1e-6)


def test_switch() -> None:
    switch = pytest.importorskip(
        "transformers.models.switch_transformers.modeling_switch_transformers"
    )
    config = switch.SwitchTransformersConfig(
        d_model=32, num_experts=8, expert_capacity=500, router_jitter_noise=0.0
    )
    published = switch.SwitchTransformersTop1Router(config).eval()
    router = TopKRouter(32, 8, 1, renormalise=False)
    published.classifier.weight.data.copy_(router.linear.weight.data)
    x = torch.randn(1, 500, 32)

    one_hot, probability, logits = published(x)

    routing = router(x[0])
    assert torch.equal(routing.chosen(), one_hot[0].bool())
    torch.testing.assert_close(routing.weights, probability[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(routing.logits, logits[0], rtol=0, atol=1e-6)


class Theirs(nn.Module):
    """The experts of soft-moe-pytorch as a bank."""

    def __init__(self, experts: nn.ModuleList) -> None:
        super().__init__()
        self.experts = experts

    def batched(self, x_ECD: Tensor) -> Tensor:
        return torch.stack([f(x_CD) for f, x_CD in zip(self.experts, x_ECD, strict=True)])


@pytest.mark.parametrize("masked", [False, True])
def test_soft_moe(masked: bool) -> None:
    package = pytest.importorskip("soft_moe_pytorch")
    published = package.SoftMoE(dim=16, num_experts=4, num_slots=3).eval()
    router = SoftMoERouter(16, 4, slots_per_expert=3)
    x = torch.randn(1, 20, 16)
    mask = torch.rand(1, 20) > 0.3 if masked else None
    with torch.no_grad():  # it normalises rows and slots first; ours takes them as they are
        rows_ND = published.norm(x)[0]
        slots = published.slot_norm(published.slot_embeds)  # (E, P, D)
        router.phi_DS.copy_(slots.flatten(0, 1).T)

    y, _ = router.mix(rows_ND, Theirs(published.experts.experts), mask[0] if masked else None)

    expected = published(x, mask=mask)[0]
    if masked:
        expected = expected[mask[0]]
        y = y[mask[0]]
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
