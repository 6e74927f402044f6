r"""Products of rows with stacked weights: the one thing that the forms of dispatch do differently.

Every bank is written once, in terms of `linear(rows, weight, bias)`; the form decides which of the
products here stands for it.

Shapes: N rows, R rows sorted by expert, E experts, I and O a layer's widths, C rows an expert.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys_moe.errors import RequestError

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
ALIGNMENT = 8  # bf16 elements in 16 bytes, what grouped_mm asks of every stride


def dense_linear(x: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None) -> Tensor:
    r"""Give every expert every row: :math:`y_{en} = W_e x_n + b_e`, or :math:`W_e x_{en} + b_e`.

    The first layer of a bank, where all experts read the same (N, I), is one wide product. The
    others are one batched product on an accelerator and one product an expert on a CPU, which is
    faster there.

    Args:
        x: (N, I) for all experts, or (E, C, I), the rows of each.
        weight_EOI: The experts' weights, as `nn.Linear` stores them.
        bias_EO: Their biases, if any.

    Returns:
        (E, N, O), or (E, C, O).
    """
    if x.dim() == 2:
        bias = None if bias_EO is None else bias_EO.flatten()
        y_NX = F.linear(x, weight_EOI.flatten(0, 1), bias)
        return y_NX.view(-1, *weight_EOI.shape[:2]).transpose(0, 1)
    if x.device.type != "cpu":
        weight_EIO = weight_EOI.transpose(1, 2)
        return x @ weight_EIO if bias_EO is None else _baddbmm(bias_EO, x, weight_EIO)
    biases = [None] * len(weight_EOI) if bias_EO is None else bias_EO.unbind(0)
    experts = zip(x.unbind(0), weight_EOI.unbind(0), biases, strict=True)
    return torch.stack([F.linear(*expert) for expert in experts], dim=1).transpose(0, 1)


def computed_in(x: Tensor) -> torch.dtype:
    """Return the type that products of `x` are computed in: autocast's, or its own."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


class GroupedLinear:
    r"""Give each row its own expert, :math:`y_r = W_{e(r)} x_r + b_{e(r)}`, in one launch.

    Stands on `torch.nn.functional.grouped_mm`. Widths that are no multiple of 8 are padded with
    zeros. Under autocast the product runs in autocast's type. Never waits for the device when it
    computes in bfloat16; other types take PyTorch's fallback, which does on CUDA.
    """

    def __init__(self, rows_RD: Tensor, ends_E: Tensor) -> None:
        """Remember which rows are whose.

        Args:
            rows_RD: The rows, for their number, device and type.
            ends_E: int32, the row after the last one of each expert. Rows from the last of these
                on belong to none, and what comes out for them is undefined.

        Raises:
            RequestError: float64, which `grouped_mm` does not have.
        """
        self.dtype = computed_in(rows_RD)
        if self.dtype == torch.float64:
            raise RequestError("dispatch", wanted="'split' or 'dense' in float64", got="'grouped'")
        self.ends_E, self.num_rows = ends_E, rows_RD.shape[0]
        self._one_hot_RE: Tensor | None = None

    def __call__(self, rows_RI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None) -> Tensor:
        """Return (R, O) from the sorted rows and the experts' parameters."""
        dtype, (num_outputs, num_inputs) = self.dtype, weight_EOI.shape[1:]
        rows_RI, weight_EOI = rows_RI.to(dtype), weight_EOI.to(dtype)
        bias_EO = None if bias_EO is None else bias_EO.to(dtype)
        if self.num_rows == 0:  # an empty product, which keeps the parameters in the graph
            y_0O = rows_RI @ weight_EOI.sum(0).T
            return y_0O if bias_EO is None else y_0O + bias_EO.sum(0)
        more_I, more_O = -num_inputs % ALIGNMENT, -num_outputs % ALIGNMENT
        if more_I or more_O:
            rows_RI = F.pad(rows_RI, (0, more_I))
            weight_EOI = F.pad(weight_EOI, (0, more_I, 0, more_O))
        if bias_EO is not None and (more_O or len(bias_EO) % ALIGNMENT):
            bias_EO = F.pad(bias_EO, (0, more_O, 0, -len(bias_EO) % ALIGNMENT))
        one_hot_RE = None if bias_EO is None else self._one_hot()
        y_RO: Tensor = _GroupedLinear.apply(  # type: ignore[no-untyped-call]
            rows_RI, weight_EOI, bias_EO, self.ends_E, one_hot_RE
        )
        return y_RO[:, :num_outputs] if more_O else y_RO

    def _one_hot(self) -> Tensor:
        """Return (R, E), E padded: 1 at each row's expert. Its product adds biases in one pass."""
        if self._one_hot_RE is None:
            row_R = torch.arange(self.num_rows, dtype=torch.int32, device=self.ends_E.device)
            expert_R = torch.searchsorted(self.ends_E, row_R, right=True, out_int32=True)
            padded = len(self.ends_E) + -len(self.ends_E) % ALIGNMENT
            expert_E = torch.arange(padded, dtype=torch.int32, device=self.ends_E.device)
            self._one_hot_RE = (expert_R.unsqueeze(1) == expert_E).to(self.dtype)
        return self._one_hot_RE


def segment_sum(rows_RO: Tensor, ends_E: Tensor) -> Tensor:
    r"""Sum each expert's rows, (E, O): a grouped product with ones, without atomics.

    As the gradient of a bias this takes the time of one reading of the rows. The gradient of
    `bias[expert]` would add every row into E rows, 20 times slower and in no fixed order.
    """
    return segment_outer(rows_RO, rows_RO.new_ones(rows_RO.shape[0], ALIGNMENT), ends_E)[:, :, 0]


def segment_outer(rows_RO: Tensor, rows_RI: Tensor, ends_E: Tensor) -> Tensor:
    r"""Sum the outer products of each expert's rows, (E, O, I): the gradient of its weight.

    .. math:: G_e = \sum_{r: e(r) = e} y_r x_r^\top

    One operator, because a compiler must not choose the layout of the transposed rows: the kernel
    asks that the summed dimension is not the contiguous one, and stops the device otherwise.
    """
    if not torch.compiler.is_compiling():
        return _segment_outer(rows_RO, rows_RI, ends_E)
    grad_EOI: Tensor = torch.ops.recsys_moe.segment_outer(rows_RO, rows_RI, ends_E)
    return grad_EOI


_LIBRARY = torch.library.Library("recsys_moe", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "segment_outer(Tensor rows_RO, Tensor rows_RI, Tensor ends_E) -> Tensor"
)


def _segment_outer(rows_RO: Tensor, rows_RI: Tensor, ends_E: Tensor) -> Tensor:
    return F.grouped_mm(rows_RO.contiguous().T, rows_RI.contiguous(), offs=ends_E)


def _segment_outer_shape(rows_RO: Tensor, rows_RI: Tensor, ends_E: Tensor) -> Tensor:
    return rows_RO.new_empty(ends_E.shape[0], rows_RO.shape[1], rows_RI.shape[1])


_LIBRARY.impl(  # type: ignore[no-untyped-call]
    "segment_outer", _segment_outer, "CompositeExplicitAutograd"
)
torch.library.register_fake("recsys_moe::segment_outer", _segment_outer_shape, lib=_LIBRARY)


class _GroupedLinear(torch.autograd.Function):
    """`grouped_mm` with a bias whose gradient is a segment sum, for gradients of any strides."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_RI: Tensor,
        weight_EOI: Tensor,
        bias_EO: Tensor | None,
        ends_E: Tensor,
        one_hot_RE: Tensor | None,
    ) -> Tensor:
        rows_RI = rows_RI.contiguous()
        ctx.save_for_backward(rows_RI, weight_EOI, ends_E)
        ctx.num_biases = 0 if bias_EO is None else len(bias_EO)
        y_RO: Tensor = F.grouped_mm(rows_RI, weight_EOI.transpose(1, 2), offs=ends_E)
        if bias_EO is None or one_hot_RE is None:
            return y_RO
        return y_RO.addmm_(one_hot_RE, bias_EO)

    @staticmethod
    def backward(ctx: Any, grad_RO: Tensor) -> tuple[Tensor | None, ...]:
        rows_RI, weight_EOI, ends_E = ctx.saved_tensors
        grad_RO = grad_RO.contiguous()
        for_rows, for_weight, for_bias, *_ = ctx.needs_input_grad
        grad_RI = F.grouped_mm(grad_RO, weight_EOI, offs=ends_E) if for_rows else None
        grad_EOI = segment_outer(grad_RO, rows_RI, ends_E) if for_weight else None
        grad_EO = segment_sum(grad_RO, ends_E) if for_bias else None
        if grad_EO is not None and ctx.num_biases > len(grad_EO):
            grad_EO = F.pad(grad_EO, (0, 0, 0, ctx.num_biases - len(grad_EO)))
        return grad_RI, grad_EOI, grad_EO, None, None


def _baddbmm(bias_EO: Tensor, x_ECI: Tensor, weight_EIO: Tensor) -> Tensor:
    return torch.baddbmm(bias_EO.unsqueeze(1).to(x_ECI.dtype), x_ECI, weight_EIO)
