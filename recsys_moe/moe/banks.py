r"""Banks of experts of one kind, their parameters stacked; each kind's mathematics stands once.

Shapes: N rows, R rows sorted by expert, E experts, C rows an expert, D input width, H hidden
width, O output width, I and O of a layer.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import pairwise, repeat

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_moe.errors import RequestError
from recsys_moe.moe.grouped import GroupedLinear, Linear, dense_linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class Bank(nn.Module):
    """Experts of one kind and size. A kind is its parameters and its `body`.

    A bank computes every expert on every row (`forward`), each expert on its own rows, sorted
    (`grouped`), or each on equally many (`batched`); the three agree.
    """

    def __init__(self, num_experts: int, input_width: int, output_width: int) -> None:
        super().__init__()
        for name, size in (
            ("num_experts", num_experts),
            ("input_width", input_width),
            ("output_width", output_width),
        ):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise RequestError(
                    f"bank.{name}", wanted="a whole number of at least 1", got=repr(size)
                )
        self.num_experts, self.input_width, self.output_width = (
            num_experts,
            input_width,
            output_width,
        )

    def stacked(self) -> list[Tensor | None]:
        """Return the stacked parameters (E, …) in the order in which `body` takes them."""
        raise NotImplementedError

    def body(self, x: Tensor, stacked: Sequence[Tensor | None], linear: Linear) -> Tensor:
        """Compute the experts with a product that fits the form of `x` and of the parameters."""
        raise NotImplementedError

    def settings(self) -> tuple[object, ...]:
        """Return what two banks must share to be appended, beside the shapes."""
        return ()

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return every expert's output on every row, (N, E, O)."""
        return self.body(x_ND, self.stacked(), dense_linear).transpose(0, 1)

    def batched(self, x_ECD: Tensor) -> Tensor:
        """Return each expert's output on its own C rows, (E, C, O)."""
        return self.body(x_ECD, self.stacked(), dense_linear)

    def grouped(self, rows_RD: Tensor, counts_E: Tensor, *, how: str = "auto") -> Tensor:
        """Return each row's own expert's output, (R, O).

        Args:
            rows_RD: Rows sorted by expert. Rows past the last counted one belong to no expert and
                their output is undefined.
            counts_E: int32 or int64, the number of rows of each expert.
            how: As in `until`.
        """
        return self.until(rows_RD, counts_E.cumsum(0, dtype=torch.int32), how=how)

    def until(self, rows_RD: Tensor, ends_E: Tensor, *, how: str = "auto") -> Tensor:
        """Return what `grouped` does, from the row after the last one of each expert.

        Args:
            rows_RD: As in `grouped`.
            ends_E: int32, the sums of the counts so far.
            how: `split`, one product an expert, which reads the counts on the host; `grouped`,
                one launch (`GroupedLinear`); `auto`, the first on a CPU and else the second.

        Raises:
            RequestError: An unknown form, or `grouped` with float64.
        """
        how = ("split" if rows_RD.device.type == "cpu" else "grouped") if how == "auto" else how
        if how == "grouped":
            return self.body(rows_RD, self.stacked(), GroupedLinear(rows_RD, ends_E))
        if how != "split":
            choices = ["auto", "split", "grouped"]
            raise RequestError("how", wanted=" or ".join(choices), got=repr(how), choices=choices)
        ends = [0, *ends_E.tolist()]
        sizes = [stop - start for start, stop in pairwise([*ends, len(rows_RD)])]
        parts = torch.split(rows_RD, sizes)
        # unbind once: each indexing of a stacked parameter would fill a whole zero gradient
        experts = zip(*(_unbound(p) for p in self.stacked()), strict=False)
        outs = [self.body(x, expert, F.linear) for x, expert in zip(parts, experts, strict=False)]
        left = len(rows_RD) - ends[-1]
        return torch.cat(outs if not left else [*outs, outs[0].new_zeros(left, self.output_width)])

    @cached_property
    def weights_per_expert(self) -> int:
        """The number of parameters of one expert."""
        return sum(parameter.numel() for parameter in self.parameters()) // self.num_experts

    def append(self, other: "Bank") -> "Bank":
        """Return a new bank with another's experts after this one's.

        Raises:
            RequestError: The other bank is of another kind or size.
        """
        if self._kind() != other._kind():
            raise RequestError(
                "append", wanted=f"a bank of {self._kind()}", got=f"one of {other._kind()}"
            )
        theirs = dict(other.named_parameters())
        return self._rebuilt(lambda name, p: torch.cat([p, theirs[name]]))

    def keep(self, indices: Sequence[int]) -> "Bank":
        """Return a new bank of these experts, in this order.

        Raises:
            RequestError: No index, one twice, or one that is no expert's.
        """
        known = set(range(self.num_experts))
        if not indices or len(set(indices)) != len(indices) or not known.issuperset(indices):
            wanted = f"different experts from 0 to {self.num_experts - 1}"
            raise RequestError("keep", wanted=wanted, got=repr(list(indices)))
        return self._rebuilt(lambda name, p: p[list(indices)])

    def extra_repr(self) -> str:
        """Return the sizes for `repr`."""
        return f"num_experts={self.num_experts}, {self.input_width} -> {self.output_width}"

    def _kind(self) -> tuple[object, ...]:
        shapes = tuple((name, tuple(p.shape[1:])) for name, p in self.named_parameters())
        return type(self).__name__, *self.settings(), *shapes

    def _rebuilt(self, change: Callable[[str, Tensor], Tensor]) -> "Bank":
        new = copy.deepcopy(self)
        for name, parameter in self.named_parameters():
            owner, _, leaf = name.rpartition(".")
            value = change(name, parameter.detach()).clone()
            setattr(new.get_submodule(owner), leaf, nn.Parameter(value, parameter.requires_grad))
            new.num_experts = len(value)
        return new


class MLPBank(Bank):
    r"""Perceptrons whose layers all end in the activation, or all but the last.

    .. math:: f_e(x) = a(W_e^n \dots a(W_e^1 x + b_e^1) \dots + b_e^n)

    >>> MLPBank(3, 8, [16, 4])(torch.zeros(5, 8)).shape
    torch.Size([5, 3, 4])
    """

    def __init__(
        self,
        num_experts: int,
        input_width: int,
        widths: Sequence[int],
        *,
        activation: str = "relu",
        bias: bool = True,
        last_activation: bool = True,
        dropout: float = 0.0,
    ) -> None:
        """Stack the layers.

        Args:
            num_experts: E.
            input_width: D.
            widths: The layers' output widths; the last is the bank's.
            activation: `relu`, `silu` or `gelu_tanh`.
            bias: Whether the layers add one.
            last_activation: Whether the last layer ends in the activation too, as the experts of
                MMoE and PLE do; the feed-forward layer of a transformer does not.
            dropout: The share of each activation's outputs that training drops.

        Raises:
            RequestError: An unknown activation, or a size below 1.
        """
        super().__init__(num_experts, input_width, widths[-1] if widths else 0)
        check_activation(activation)
        self.activation, self.last_activation, self.dropout = activation, last_activation, dropout
        ins = [input_width, *widths[:-1]]
        self.weights_EOI = nn.ParameterList(
            uniform((num_experts, o, i), i) for i, o in zip(ins, widths, strict=True)
        )
        self.biases_EO = nn.ParameterList(
            uniform((num_experts, o), i) for i, o in zip(ins, widths, strict=True) if bias
        )

    def stacked(self) -> list[Tensor | None]:
        """Return weight and bias (or None) of one layer after the other."""
        biases = list(self.biases_EO) or [None] * len(self.weights_EOI)
        layers = zip(self.weights_EOI, biases, strict=True)
        return [parameter for layer in layers for parameter in layer]

    def body(self, x: Tensor, stacked: Sequence[Tensor | None], linear: Linear) -> Tensor:
        """Apply the layers."""
        last = len(stacked) // 2 - 1
        for layer in range(last + 1):
            x = linear(x, needed(stacked[2 * layer]), stacked[2 * layer + 1])
            if layer < last or self.last_activation:
                x = F.dropout(ACTIVATIONS[self.activation](x), self.dropout, self.training)
        return x

    def settings(self) -> tuple[object, ...]:
        """Return activation, where it stands, and dropout."""
        return self.activation, self.last_activation, self.dropout


class LinearBank(Bank):
    r"""Affine experts, :math:`f_e(x) = W_e x + b_e`.

    >>> LinearBank(3, 8, 4)(torch.zeros(5, 8)).shape
    torch.Size([5, 3, 4])
    """

    def __init__(
        self, num_experts: int, input_width: int, output_width: int, *, bias: bool = True
    ) -> None:
        super().__init__(num_experts, input_width, output_width)
        self.weight_EOI = uniform((num_experts, output_width, input_width), input_width)
        self.bias_EO = uniform((num_experts, output_width), input_width) if bias else None

    def stacked(self) -> list[Tensor | None]:
        """Return weight and bias."""
        return [self.weight_EOI, self.bias_EO]

    def body(self, x: Tensor, stacked: Sequence[Tensor | None], linear: Linear) -> Tensor:
        """Apply the one layer."""
        weight, bias = stacked
        return linear(x, needed(weight), bias)


def uniform(shape: tuple[int, ...], fan_in: int) -> nn.Parameter:
    """Initialise as `nn.Linear` does, each expert for itself."""
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def needed(parameter: Tensor | None) -> Tensor:
    """Return a parameter that is always there: a weight, not a bias."""
    assert parameter is not None
    return parameter


def check_activation(name: str) -> None:
    """Refuse a word that is no activation's."""
    if name not in ACTIVATIONS:
        wanted = ", ".join(ACTIVATIONS)
        raise RequestError("activation", wanted=wanted, got=repr(name), choices=ACTIVATIONS)


def _unbound(parameter: Tensor | None) -> Sequence[Tensor] | repeat:  # type: ignore[type-arg]
    return repeat(None) if parameter is None else parameter.unbind(0)
