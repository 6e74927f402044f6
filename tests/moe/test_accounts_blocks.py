"""A block costs its router, K of its E experts, and what all rows share."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from recsys_moe.moe.accounts import account, accounts
from recsys_moe.moe.accounts_parts import Piece, bank_pieces, gate_pieces
from recsys_moe.moe.banks import LinearBank, MLPBank
from recsys_moe.moe.banks_gated import CrossBank, SwiGLUBank
from recsys_moe.moe.block import MoEBlock
from recsys_moe.moe.presets import deepseek_v3_layer, mixtral_8x7b_layer
from recsys_moe.moe.router_base import Router
from recsys_moe.moe.router_cosine import CosineRouter
from recsys_moe.moe.router_dselect_k import DSelectKRouter
from recsys_moe.moe.router_hierarchical import HierarchicalRouter
from recsys_moe.moe.router_sigmoid import SigmoidRouter
from recsys_moe.moe.router_softmax import SoftmaxRouter
from recsys_moe.moe.router_top_k import NoisyTopKRouter, TopKRouter
from recsys_moe.moe.router_top_p import TopPRouter

BANKS = [
    (MLPBank(8, 6, [10, 4]), 6 * 10 + 10 + 10 * 4 + 4, 2 * (6 * 10 + 10 * 4)),
    (MLPBank(8, 6, [10, 4], bias=False), 6 * 10 + 10 * 4, 2 * (6 * 10 + 10 * 4)),
    (SwiGLUBank(8, 6, 10), 3 * 6 * 10, 2 * 3 * 6 * 10),
    (LinearBank(8, 6, 4), 6 * 4 + 4, 2 * 6 * 4),
    (CrossBank(8, 6, rank=2), 2 * 2 * 6 + 6, 2 * 2 * 2 * 6),
]


@pytest.mark.parametrize(("bank", "parameters", "flops"), BANKS)
@pytest.mark.parametrize("k", [1, 3, 8])
def test_a_sparse_block_uses_k_of_its_experts(
    bank: nn.Module, parameters: int, flops: int, k: int
) -> None:
    block = MoEBlock(
        TopKRouter(6, 8, k, renormalise=k > 1), bank, LinearBank(1, 6, bank.output_width)
    )

    found = account(block)

    width = bank.output_width
    beside = 6 * 8 + 6 * width + width
    assert found.network_parameters == 8 * parameters + beside
    assert found.active_network_parameters == k * parameters + beside
    assert found.flops_per_row == k * (flops + 2 * width) + 2 * (6 * 8 + 6 * width)
    assert found.embedding_parameters == 0


def test_a_dense_block_uses_all_of_its_experts() -> None:
    found = account(MoEBlock(SoftmaxRouter(6, 8), LinearBank(8, 6, 4)))

    assert found.active_parameters == found.parameters
    assert found.flops_per_row == 2 * (6 * 8 + 8 * 6 * 4 + 8 * 4)


def test_published_layers_cost_what_they_publish() -> None:
    with torch.device("meta"):
        mixtral, deepseek = mixtral_8x7b_layer(), deepseek_v3_layer()

    one, found = 3 * 4096 * 14336, account(mixtral)
    assert found.network_parameters == 8 * one + 8 * 4096
    assert found.active_network_parameters == 2 * one + 8 * 4096
    assert found.flops_per_row == 2 * (2 * one + 8 * 4096) + 2 * 2 * 4096
    one, found = 3 * 7168 * 2048, account(deepseek)
    assert found.network_parameters == 257 * one + 256 * 7168
    assert found.active_network_parameters == 9 * one + 256 * 7168


EXPORTABLE = [
    SoftmaxRouter(6, 8),
    TopKRouter(6, 8, 2),
    NoisyTopKRouter(6, 8, 2),
    SigmoidRouter(6, 8, 2),
    CosineRouter(6, 8, sphere_width=3, k=2),
    HierarchicalRouter(6, 8, 2, groups_kept=1, experts_kept=2, renormalise=False),
    DSelectKRouter(6, 8, 2),
    TopPRouter(6, 8, 0.7, max_experts=2),
]


@pytest.mark.parametrize("router", EXPORTABLE, ids=lambda router: type(router).__name__)
def test_every_router_has_an_account(router: Router) -> None:
    found = account(MoEBlock(router, LinearBank(8, 6, 4, bias=False)))

    slots = 8 if isinstance(router, SoftmaxRouter | DSelectKRouter) else 2
    own = sum(parameter.numel() for parameter in router.parameters())
    assert found.active_network_parameters == own + slots * 24
    products = [p.numel() for name, p in router.named_parameters() if p.dim() > 1]
    if isinstance(router, NoisyTopKRouter):
        products.pop()
    assert found.flops_per_row == 2 * (sum(products) + slots * 24 + slots * 4)


def test_noise_is_for_training_and_costs_a_request_nothing() -> None:
    router = NoisyTopKRouter(6, 8, 2)
    found = account(MoEBlock(router, LinearBank(8, 6, 4)))

    assert found.flops_per_row == 2 * (6 * 8 + 2 * 6 * 4 + 2 * 4)
    assert router.training


class Two(nn.Module):
    """A wiring of its own: two sparse gates over one bank."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.bank = LinearBank(8, 6, 4, bias=False)
        self.routers = nn.ModuleList(TopKRouter(6, 8, k) for _ in range(2))

    def pieces(self, tasks: Sequence[str], name: str) -> list[Piece]:
        experts, found = bank_pieces(self.bank, frozenset({"a", "b"}), "bank")
        for task, router in zip(("a", "b"), self.routers, strict=True):
            found += gate_pieces(router, frozenset({task}), experts, 4, f"router {task}")
        return found


@pytest.mark.parametrize(("k", "active"), [(2, 4), (5, 8)])
def test_gates_over_one_bank_share_its_memory_and_its_experts_work(k: int, active: int) -> None:
    first, _, both = accounts(Two(k))

    gate, mix = 6 * 8, 2 * k * 4
    assert first.network_parameters == 8 * 24 + gate
    assert both.network_parameters == 8 * 24 + 2 * gate
    assert first.active_network_parameters == k * 24 + gate
    assert both.active_network_parameters == active * 24 + 2 * gate
    assert first.flops_per_row == 2 * (k * 24 + gate) + mix
    assert both.flops_per_row == 2 * (active * 24 + 2 * gate) + 2 * mix
