r"""A bank of experts, and the gate that mixes them.

Shapes: B batch, I input width, E experts, H expert width, O a layer's width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ExpertBank(nn.Module):
    r"""Experts of one shape, MLPs with ReLU, all fed with the same input.

    .. math:: f_e(x) = \operatorname{relu}(W_e^n \dots \operatorname{relu}(W_e^1 x + b_e^1) + b_e^n)

    The parameters of all experts are stacked, so the first layer is one wide product; the others
    are one product an expert on a CPU (faster there) and one batched product elsewhere.

    >>> ExpertBank(3, 8, [16, 4])(torch.zeros(5, 8)).shape
    torch.Size([5, 3, 4])
    """

    def __init__(
        self, num_experts: int, input_width: int, widths: Sequence[int], *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if num_experts < 1 or not widths:
            raise ValueError(f"a bank needs an expert and a layer, got {num_experts} and {widths}")
        self.num_experts, self.output_width, self.dropout = num_experts, widths[-1], dropout
        ins = [input_width, *widths[:-1]]
        self.weights_EOI = nn.ParameterList(
            _uniform((num_experts, o, i), i) for i, o in zip(ins, widths, strict=True)
        )
        self.biases_EO = nn.ParameterList(
            _uniform((num_experts, o), i) for i, o in zip(ins, widths, strict=True)
        )

    def forward(self, x_BI: Tensor) -> Tensor:
        """Return every expert's output, (B, E, H)."""
        weight_EOI, bias_EO = self.weights_EOI[0], self.biases_EO[0]
        h_BEO = F.linear(x_BI, weight_EOI.flatten(0, 1), bias_EO.flatten())
        h_BEO = self._activate(h_BEO.view(-1, *bias_EO.shape))
        for weight_EOI, bias_EO in list(zip(self.weights_EOI, self.biases_EO, strict=True))[1:]:
            h_BEO = self._activate(_layer(h_BEO, weight_EOI, bias_EO))
        return h_BEO

    def _activate(self, h: Tensor) -> Tensor:
        return F.dropout(F.relu(h), self.dropout, self.training)


class Gate(nn.Module):
    r"""Weights over experts: :math:`\operatorname{softmax}(W x + b)`, never below float32."""

    def __init__(self, input_width: int, num_experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_width, num_experts)

    def forward(self, x_BI: Tensor) -> Tensor:
        """Return weights that sum to one, (B, E), float32 or wider."""
        logits_BE: Tensor = self.linear(x_BI)
        wide = torch.promote_types(logits_BE.dtype, torch.float32)
        return logits_BE.softmax(-1, dtype=wide)


def mix(weights_BE: Tensor, h_BEH: Tensor) -> Tensor:
    """Return the experts' weighted sum, (B, H)."""
    return (weights_BE.to(h_BEH.dtype).unsqueeze(1) @ h_BEH).squeeze(1)


def _layer(h_BEI: Tensor, weight_EOI: Tensor, bias_EO: Tensor) -> Tensor:
    if h_BEI.is_cuda:
        h_EBO = torch.baddbmm(
            bias_EO.unsqueeze(1), h_BEI.transpose(0, 1), weight_EOI.transpose(1, 2)
        )
        return h_EBO.transpose(0, 1)
    parts = zip(h_BEI.unbind(1), weight_EOI.unbind(0), bias_EO.unbind(0), strict=True)
    return torch.stack([F.linear(h, weight, bias) for h, weight, bias in parts], dim=1)


def _uniform(shape: tuple[int, ...], fan_in: int) -> nn.Parameter:
    """Initialise as `nn.Linear` does, each expert for itself."""
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
