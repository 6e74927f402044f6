"""The presets are the published layers: their sizes, and their outputs beside Hugging Face's."""

import pytest
import torch
from torch import Tensor

from recsys_moe.moe.block import MoEBlock
from recsys_moe.moe.presets import deepseek_v3_layer, mixtral_8x7b_layer, switch_layer

SIZES = {  # parameters: experts, router, shared
    mixtral_8x7b_layer: 8 * 3 * 4096 * 14336 + 8 * 4096,
    switch_layer: 128 * 2 * 768 * 3072 + 128 * 768,
    deepseek_v3_layer: (256 + 1) * 3 * 7168 * 2048 + 256 * 7168,
}


@pytest.mark.parametrize("preset", SIZES)
def test_a_preset_is_as_large_as_the_published_layer(preset: type) -> None:
    with torch.device("meta"):
        layer = preset()
    assert sum(parameter.numel() for parameter in layer.parameters()) == SIZES[preset]


def outputs_and_gradients(module: torch.nn.Module, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
    x_BSD = x_BSD.detach().requires_grad_()
    y_BSD = module(x_BSD)
    y_BSD = y_BSD[0] if isinstance(y_BSD, tuple) else y_BSD
    return y_BSD, torch.autograd.grad(y_BSD.square().sum(), x_BSD)[0]


def assert_same(layer: MoEBlock, oracle: torch.nn.Module, width: int) -> None:
    torch.manual_seed(1)
    x_BSD = torch.randn(2, 9, width)
    want = outputs_and_gradients(oracle, x_BSD)
    for layer.dispatch in ("dense", "split", "grouped"):
        for a, b in zip(outputs_and_gradients(layer, x_BSD), want, strict=True):
            largest = b.abs().max().item()  # small differences of large products, in any order
            torch.testing.assert_close(a, b, rtol=0, atol=2e-6 * largest)


def copy_experts(layer: MoEBlock, gate_up_EGD: Tensor, down_EOH: Tensor) -> None:
    with torch.no_grad():
        layer.bank.gate_up_EGD.copy_(gate_up_EGD)
        layer.bank.down_EOH.copy_(down_EOH)


def test_mixtral_is_that_of_transformers() -> None:
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    config = pytest.importorskip("transformers").MixtralConfig(
        hidden_size=16, intermediate_size=24, num_local_experts=8, num_experts_per_tok=2
    )
    torch.manual_seed(0)
    oracle = mixtral.MixtralSparseMoeBlock(config).eval()
    for parameter in oracle.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    layer = mixtral_8x7b_layer(width=16, hidden_width=24).eval()
    copy_experts(layer, oracle.experts.gate_up_proj, oracle.experts.down_proj)
    layer.router.linear.weight.data.copy_(oracle.gate.weight)

    assert_same(layer, oracle, 16)


@pytest.mark.parametrize("groups", [(1, 1), (4, 2)])
def test_deepseek_v3_is_that_of_transformers(groups: tuple[int, int]) -> None:
    deepseek = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    config = pytest.importorskip("transformers").DeepseekV3Config(
        hidden_size=16,
        moe_intermediate_size=24,
        n_routed_experts=16,
        num_experts_per_tok=4,
        n_shared_experts=2,
        n_group=groups[0],
        topk_group=groups[1],
        routed_scaling_factor=2.5,
        norm_topk_prob=True,
    )
    torch.manual_seed(0)
    oracle = deepseek.DeepseekV3MoE(config).eval()
    for parameter in oracle.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    oracle.gate.e_score_correction_bias.copy_(0.3 * torch.randn(16))
    layer = deepseek_v3_layer(
        width=16,
        hidden_width=24,
        num_experts=16,
        num_shared=2,
        k=4,
        num_groups=groups[0],
        groups_kept=groups[1],
    ).eval()
    copy_experts(layer, oracle.experts.gate_up_proj, oracle.experts.down_proj)
    shared = oracle.shared_experts
    with torch.no_grad():
        gate_up_GD = torch.cat([shared.gate_proj.weight, shared.up_proj.weight])
        layer.shared.gate_up_EGD.copy_(gate_up_GD.unsqueeze(0))
        layer.shared.down_EOH.copy_(shared.down_proj.weight.unsqueeze(0))
        layer.router.linear.weight.copy_(oracle.gate.weight)
        layer.router.selection_bias.copy_(oracle.gate.e_score_correction_bias)

    assert_same(layer, oracle, 16)


def test_switch_multiplies_one_expert_by_its_probability() -> None:
    torch.manual_seed(0)
    layer = switch_layer(width=8, hidden_width=16, num_experts=4).double()
    x_ND = torch.randn(6, 8, dtype=torch.float64)

    y_NO, _ = layer(x_ND)

    for x_D, y_O in zip(x_ND, y_NO, strict=True):
        p_E = (layer.router.linear.weight @ x_D).softmax(0)
        best = int(p_E.argmax())
        up, down = (weight[best] for weight in layer.bank.weights_EOI)
        want = p_E[best] * (down @ torch.relu(up @ x_D))
        torch.testing.assert_close(y_O, want, rtol=0, atol=1e-12)
