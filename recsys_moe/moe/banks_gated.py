r"""Experts that multiply: SwiGLU and the low-rank cross of DCN-v2.

Shapes: N rows, E experts, D input width, H hidden width, G twice that, O output width, P rank,
L layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_moe.errors import RequestError
from recsys_moe.moe.banks import Bank, needed, uniform
from recsys_moe.moe.grouped import Linear


class SwiGLUBank(Bank):
    r"""Gated perceptrons (Shazeer, "GLU Variants Improve Transformer", 2020, equation 6).

    .. math:: f_e(x) = W_e^{down} (\operatorname{silu}(W_e^{gate} x) \odot W_e^{up} x)

    Gate and up are one product: the first H of the G = 2 H columns are the gate's.

    >>> SwiGLUBank(3, 8, 16)(torch.zeros(5, 8)).shape
    torch.Size([5, 3, 8])
    """

    def __init__(
        self,
        num_experts: int,
        input_width: int,
        hidden_width: int,
        output_width: int | None = None,
        *,
        bias: bool = False,
    ) -> None:
        """Stack gate, up and down projections.

        Args:
            num_experts: E.
            input_width: D.
            hidden_width: H.
            output_width: O, the input's width if None.
            bias: Whether the projections add one; the published models' do not.

        Raises:
            RequestError: A size below 1.
        """
        super().__init__(num_experts, input_width, output_width or input_width)
        if hidden_width < 1:
            raise RequestError("bank.hidden_width", wanted="at least 1", got=repr(hidden_width))
        wide, out = 2 * hidden_width, self.output_width
        self.gate_up_EGD = uniform((num_experts, wide, input_width), input_width)
        self.gate_up_bias_EG = uniform((num_experts, wide), input_width) if bias else None
        self.down_EOH = uniform((num_experts, out, hidden_width), hidden_width)
        self.down_bias_EO = uniform((num_experts, out), hidden_width) if bias else None

    def stacked(self) -> list[Tensor | None]:
        """Return gate-and-up and down, each weight and bias."""
        return [self.gate_up_EGD, self.gate_up_bias_EG, self.down_EOH, self.down_bias_EO]

    def body(self, x: Tensor, stacked: Sequence[Tensor | None], linear: Linear) -> Tensor:
        """Apply both products."""
        gate_up, gate_up_bias, down, down_bias = stacked
        gate, up = linear(x, needed(gate_up), gate_up_bias).chunk(2, dim=-1)
        return linear(F.silu(gate) * up, needed(down), down_bias)


class CrossBank(Bank):
    r"""Low-rank cross networks (DCN-v2; Wang et al., WWW 2021, equation 2).

    .. math:: x_{l+1} = x_0 \odot (U_{el} V_{el}^\top x_l + b_{el}) + x_l

    >>> CrossBank(3, 8, rank=2)(torch.zeros(5, 8)).shape
    torch.Size([5, 3, 8])
    """

    def __init__(
        self, num_experts: int, input_width: int, *, rank: int, num_layers: int = 1
    ) -> None:
        """Stack the layers; the output is as wide as the input.

        Raises:
            RequestError: A size below 1.
        """
        super().__init__(num_experts, input_width, input_width)
        for name, size in (("rank", rank), ("num_layers", num_layers)):
            if size < 1:
                raise RequestError(f"bank.{name}", wanted="at least 1", got=repr(size))
        width, layers = input_width, range(num_layers)
        self.v_EPD = nn.ParameterList(uniform((num_experts, rank, width), width) for _ in layers)
        self.u_EDP = nn.ParameterList(uniform((num_experts, width, rank), rank) for _ in layers)
        self.biases_ED = nn.ParameterList(
            nn.Parameter(torch.zeros(num_experts, width)) for _ in layers
        )

    def stacked(self) -> list[Tensor | None]:
        """Return V, U and bias of one layer after the other."""
        layers = zip(self.v_EPD, self.u_EDP, self.biases_ED, strict=True)
        return [parameter for layer in layers for parameter in layer]

    def body(self, x: Tensor, stacked: Sequence[Tensor | None], linear: Linear) -> Tensor:
        """Cross the input with itself, layer by layer."""
        h = x
        for layer in range(len(stacked) // 3):
            v, u, bias = stacked[3 * layer : 3 * layer + 3]
            h = x * linear(linear(h, needed(v), None), needed(u), bias) + h
        return h
