"""Kinds of experts: how many, how wide, and a bank of them.

Each function here has the arguments that a wiring hands to whatever kind is configured (a YAML of
`conf/experts/`): the number of experts, the width of what they read, the `widths` of their layers,
the last of which is the width of what they put out, and the share of dropout.
"""

from collections.abc import Callable, Mapping, Sequence

from recsys_moe.errors import RequestError
from recsys_moe.moe.banks import Bank, LinearBank, MLPBank
from recsys_moe.moe.banks_gated import CrossBank, SwiGLUBank
from recsys_moe.moe.banks_hetero import HeteroBank

MakeBank = Callable[..., Bank | HeteroBank]


def mlp(
    num_experts: int,
    input_width: int,
    *,
    widths: Sequence[int],
    dropout: float,
    activation: str = "relu",
) -> Bank:
    """Return perceptrons whose layers all end in the activation (`relu`, `silu`, `gelu_tanh`)."""
    return MLPBank(num_experts, input_width, widths, activation=activation, dropout=dropout)


def swiglu(
    num_experts: int, input_width: int, *, widths: Sequence[int], dropout: float, bias: bool = True
) -> Bank:
    """Return gated perceptrons with one hidden layer, the first of `widths`; without dropout."""
    return SwiGLUBank(num_experts, input_width, widths[0], widths[-1], bias=bias)


def linear(num_experts: int, input_width: int, *, widths: Sequence[int], dropout: float) -> Bank:
    """Return affine maps; of `widths` only the last counts, and there is no dropout."""
    return LinearBank(num_experts, input_width, widths[-1])


def cross(
    num_experts: int,
    input_width: int,
    *,
    widths: Sequence[int],
    dropout: float,
    rank: int = 16,
    num_layers: int = 1,
) -> HeteroBank:
    """Return low-rank crosses, as wide as what they read, and one projection to the last width."""
    bank = CrossBank(num_experts, input_width, rank=rank, num_layers=num_layers)
    return HeteroBank([bank], output_width=widths[-1])


def mixed(
    num_experts: int,
    input_width: int,
    *,
    widths: Sequence[int],
    dropout: float,
    kinds: Mapping[str, MakeBank],
) -> HeteroBank:
    """Return experts of several kinds: as many of each as go round, the first kinds first.

    Args:
        num_experts: Experts in all.
        input_width: Width of what they read.
        widths: Handed to each kind.
        dropout: Handed to each kind.
        kinds: By name, in the order in which they take turns.

    Raises:
        RequestError: No kind.
    """
    if not kinds:
        raise RequestError("experts.kinds", wanted="one kind at least", got="none")
    banks: list[Bank] = []
    for turn, make in enumerate(kinds.values()):
        count = len(range(turn, num_experts, len(kinds)))
        if count:
            banks += flat(make(count, input_width, widths=widths, dropout=dropout))
    return HeteroBank(banks, output_width=widths[-1])


def flat(bank: Bank | HeteroBank) -> list[Bank]:
    """Return the banks of one kind that a bank consists of."""
    return list(bank.banks) if isinstance(bank, HeteroBank) else [bank]  # type: ignore[arg-type]
