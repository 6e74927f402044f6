r"""Layers in the shape of published models; widths are arguments, the published ones the defaults.

Parameters are as large as the models': build under `torch.device("meta")` to look at one, or pass
smaller widths to train one.

Shapes: N rows, D width, H hidden width, E experts, K experts of a row.
"""

from recsys_moe.moe.banks import MLPBank
from recsys_moe.moe.banks_gated import SwiGLUBank
from recsys_moe.moe.block import MoEBlock
from recsys_moe.moe.router_sigmoid import SigmoidRouter
from recsys_moe.moe.router_top_k import TopKRouter


def mixtral_8x7b_layer(
    *,
    width: int = 4096,
    hidden_width: int = 14336,
    num_experts: int = 8,
    k: int = 2,
    dispatch: str = "auto",
    checkpoint: bool = False,
) -> MoEBlock:
    r"""Build the layer of Mixtral 8x7B (Jiang et al., 2024, table 1 and section 2.1).

    .. math:: y = \sum_{i} \operatorname{softmax}(\operatorname{TopK}(W_g x))_i
        \operatorname{SwiGLU}_i(x)

    >>> mixtral_8x7b_layer(width=16, hidden_width=32).bank
    SwiGLUBank(num_experts=8, 16 -> 16)
    """
    router = TopKRouter(width, num_experts, k, renormalise=True)
    bank = SwiGLUBank(num_experts, width, hidden_width)
    return MoEBlock(router, bank, dispatch=dispatch, checkpoint=checkpoint)


def switch_layer(
    *,
    width: int = 768,
    hidden_width: int = 3072,
    num_experts: int = 128,
    dropout: float = 0.0,
    dispatch: str = "auto",
    capacity_factor: float = 1.25,
    checkpoint: bool = False,
) -> MoEBlock:
    r"""Build the layer of a Switch Transformer (Fedus et al., 2021, equations 1 and 2).

    .. math:: y = p_i f_i(x), \quad p = \operatorname{softmax}(W_r x), \quad i = \arg\max p

    The defaults are those of the released Switch-Base with 128 experts, without biases. The
    published layer drops rows: that is `dispatch="capacity"`.

    >>> switch_layer(width=16, hidden_width=32, num_experts=4).bank.num_experts
    4
    """
    router = TopKRouter(width, num_experts, 1, renormalise=False)
    bank = MLPBank(
        num_experts,
        width,
        [hidden_width, width],
        bias=False,
        last_activation=False,
        dropout=dropout,
    )
    return MoEBlock(
        router, bank, dispatch=dispatch, capacity_factor=capacity_factor, checkpoint=checkpoint
    )


def deepseek_v3_layer(
    *,
    width: int = 7168,
    hidden_width: int = 2048,
    num_experts: int = 256,
    num_shared: int = 1,
    k: int = 8,
    num_groups: int = 8,
    groups_kept: int = 4,
    scale: float = 2.5,
    dispatch: str = "auto",
    checkpoint: bool = False,
) -> MoEBlock:
    r"""Build the layer of DeepSeek-V3 (DeepSeek-AI, 2024, equations 12 to 16 and section 4.2).

    .. math:: y = c \sum_{i \in T} \frac{s_i}{\sum_{j \in T} s_j} \operatorname{SwiGLU}_i(x)
        + \operatorname{SwiGLU}_{shared}(x), \quad s = \sigma(W x), \quad
        T = \operatorname{TopK}(s + b)

    The shared experts are one network, `num_shared` times as wide.

    >>> deepseek_v3_layer(width=16, hidden_width=32, num_experts=16).shared
    SwiGLUBank(num_experts=1, 16 -> 16)
    """
    router = SigmoidRouter(
        width, num_experts, k, scale=scale, num_groups=num_groups, groups_kept=groups_kept
    )
    bank = SwiGLUBank(num_experts, width, hidden_width)
    shared = SwiGLUBank(1, width, num_shared * hidden_width) if num_shared else None
    return MoEBlock(router, bank, shared, dispatch=dispatch, checkpoint=checkpoint)
