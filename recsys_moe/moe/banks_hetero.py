r"""Banks of different kinds under one numbering, each reading all of the input or a part of it.

Shapes: N rows, R rows sorted by expert, E experts, C rows an expert, D input width, O output width.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from recsys_moe.errors import RequestError
from recsys_moe.moe.banks import Bank

Spans = tuple[tuple[int, int], ...]


class HeteroBank(nn.Module):
    r"""An ordered list of banks, experts numbered through; a projection where widths differ.

    .. math:: f_e(x) = P_{b(e)} f_{b(e), e - first(b)}(x_{S_b})

    with :math:`S_b` the columns that bank b reads: all of them, or the slices that `features`
    names (experts of a modality or of a domain), and :math:`P_b` a linear map shared by the bank's
    experts, the identity where the bank is as wide as the whole.

    >>> from recsys_moe.moe.banks import LinearBank, MLPBank
    >>> text = LinearBank(1, 3, 4)
    >>> bank = HeteroBank([MLPBank(2, 8, [4]), text], features=[None, [slice(0, 3)]])
    >>> bank(torch.zeros(5, 8)).shape
    torch.Size([5, 3, 4])
    """

    def __init__(
        self,
        banks: Sequence[Bank],
        *,
        input_width: int | None = None,
        output_width: int | None = None,
        features: Sequence[Sequence[slice] | None] | None = None,
        num_shut: int = 0,
    ) -> None:
        """Put banks in a row.

        Args:
            banks: In the order of their experts' numbers.
            input_width: D, needed where every bank reads slices; else that of the banks.
            output_width: O, the first bank's if None.
            features: For each bank None, or the slices of the input's columns that it reads, side
                by side in that order.
            num_shut: How many of the last banks are only kept, neither computed nor counted.

        Raises:
            RequestError: No bank that is not shut, or a bank whose input width is not that of what
                it reads.
        """
        super().__init__()
        features = [None] * len(banks) if features is None else features
        if not 0 <= num_shut < len(banks) or len(features) != len(banks):
            wanted, got = "at least one, and an entry each", f"{len(banks)} and {len(features)}"
            raise RequestError("banks and features", wanted=wanted, got=got)
        self.num_shut = num_shut
        whole = [b.input_width for b, f in zip(banks, features, strict=True) if f is None]
        if input_width is None and not whole:
            raise RequestError("input_width", wanted="a number, as no bank reads all", got="none")
        width = whole[0] if input_width is None else input_width
        self.spans = tuple(
            None if f is None else tuple(_span(s, width) for s in f) for f in features
        )
        for number, (bank, spans) in enumerate(zip(banks, self.spans, strict=True)):
            read = width if spans is None else sum(stop - start for start, stop in spans)
            if bank.input_width != read:
                wanted = f"an input width of {read}, what it reads"
                raise RequestError(f"bank {number}", wanted=wanted, got=str(bank.input_width))
        self.banks = nn.ModuleList(banks)
        self.input_width, self.output_width = width, output_width or banks[0].output_width
        self.sizes = [bank.num_experts for bank in banks][: len(banks) - num_shut]
        self.num_experts = sum(self.sizes)
        self.projections = nn.ModuleList(
            nn.Identity()
            if bank.output_width == self.output_width
            else nn.Linear(bank.output_width, self.output_width, bias=False)
            for bank in banks
        )

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return every expert's output on every row, (N, E, O)."""
        return torch.cat(
            [project(bank(_columns(x_ND, spans))) for bank, project, spans in self.parts()],
            dim=1,
        )

    def batched(self, x_ECD: Tensor) -> Tensor:
        """Return each expert's output on its own C rows, (E, C, O)."""
        own = torch.split(x_ECD, self.sizes)
        return torch.cat(
            [
                project(bank.batched(_columns(own_ECD, spans)))
                for (bank, project, spans), own_ECD in zip(self.parts(), own, strict=True)
            ]
        )

    def grouped(self, rows_RD: Tensor, counts_E: Tensor, *, how: str = "auto") -> Tensor:
        """Return each row's own expert's output, (R, O); see `Bank.grouped`."""
        return self.until(rows_RD, counts_E.cumsum(0, dtype=torch.int32), how=how)

    def until(self, rows_RD: Tensor, ends_E: Tensor, *, how: str = "auto") -> Tensor:
        """Return what `grouped` does, from the row after the last one of each expert.

        On an accelerator no bank learns on the host where its rows begin: each is handed all rows,
        turned so that its own come first, and computes only those.
        """
        how = ("split" if rows_RD.device.type == "cpu" else "grouped") if how == "auto" else how
        parts = list(zip(self.parts(), torch.split(ends_E, self.sizes), strict=True))
        num_rows = rows_RD.shape[0]
        if how == "split":
            outs, first = [], 0
            for (bank, project, spans), end_E in parts:
                last = int(end_E[-1])
                own_RD = _columns(rows_RD[first:last], spans)
                outs.append(project(bank.until(own_RD, end_E - first, how=how)))
                first = last
            left = num_rows - first
            return torch.cat([*outs, outs[0].new_zeros(left, self.output_width)] if left else outs)
        row_R = torch.arange(num_rows, device=rows_RD.device)
        out_RO, first_row = rows_RD.new_zeros(()), ends_E.new_zeros(())
        for (bank, project, spans), end_E in parts:
            # rows of others are replaced before and after, so that what grouped_mm leaves
            # undefined behind the last row reaches neither the output nor a gradient
            mine_R1 = ((row_R >= first_row) & (row_R < end_E[-1])).unsqueeze(1)
            turned_R, back_R = (
                (row_R + shift) % max(num_rows, 1) for shift in (first_row, -first_row)
            )
            own_RD = torch.where(mine_R1, _columns(rows_RD, spans), 0)[turned_R]
            own_RO = bank.until(own_RD, end_E - first_row, how=how)[back_R]
            out_RO = out_RO + project(torch.where(mine_R1, own_RO, 0))
            first_row = end_E[-1]
        return out_RO

    def parts(self) -> list[tuple[Bank, nn.Module, Spans | None]]:
        """Return the banks that are not shut, with their projections and what they read."""
        banks = cast(Iterable[Bank], self.banks)
        every = list(zip(banks, self.projections, self.spans, strict=True))
        return every[: len(every) - self.num_shut]

    def keep(self, indices: Sequence[int]) -> "HeteroBank":
        """Return a new bank of these experts in their order, and of those that are shut.

        Raises:
            RequestError: No index, one twice or out of order, or one that is no expert's.
        """
        known = set(range(self.num_experts))
        if not indices or list(indices) != sorted(set(indices)) or not known.issuperset(indices):
            wanted = f"different experts from 0 to {self.num_experts - 1}, in order"
            raise RequestError("keep", wanted=wanted, got=repr(list(indices)))
        new, first, kept = copy.copy(self), 0, []
        for number, (bank, _, _) in enumerate(self.parts()):
            mine = [e - first for e in indices if first <= e < first + bank.num_experts]
            first += bank.num_experts
            if mine:
                whole = len(mine) == bank.num_experts
                kept.append((number, bank if whole else bank.keep(mine)))
        last = len(self.banks) - self.num_shut
        kept += enumerate(cast(list[Bank], list(self.banks)[last:]), last)
        new._modules = dict(self._modules)
        new.banks = nn.ModuleList(bank for _, bank in kept)
        new.projections = nn.ModuleList(self.projections[number] for number, _ in kept)
        new.spans = tuple(self.spans[number] for number, _ in kept)
        new.sizes = [bank.num_experts for _, bank in kept][: len(kept) - self.num_shut]
        new.num_experts = sum(new.sizes)
        return new

    @property
    def weights_per_expert(self) -> int:
        """The number of parameters of an average expert."""
        modules = [module for bank, project, _ in self.parts() for module in (bank, project)]
        total = sum(p.numel() for module in modules for p in module.parameters())
        return total // self.num_experts


def _span(part: slice, width: int) -> tuple[int, int]:
    start, stop, step = part.indices(width)
    if step != 1 or stop <= start or (part.stop is not None and part.stop > width):
        wanted = f"a slice of neighbouring columns within {width}"
        raise RequestError("features", wanted=wanted, got=repr(part))
    return start, stop


def _columns(x: Tensor, spans: Spans | None) -> Tensor:
    if spans is None:
        return x
    return torch.cat([x[..., start:stop] for start, stop in spans], dim=-1)
