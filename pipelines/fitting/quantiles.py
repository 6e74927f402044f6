"""Exact order statistics of columns, without sorting them.

Shapes: N numbers of a batch, R ranks, P prefixes of keys, C cells of a histogram.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.plans import batches

_KEY_BITS, _MOST_CELL_BITS = 64, 18

Keys = npt.NDArray[np.uint64]


def order_statistics(
    numbers: pl.LazyFrame, ranks: Mapping[str, Sequence[int]]
) -> dict[str, list[float]]:
    """Return the numbers at some ranks (from 0) of float64 columns, each sorted without its nulls.

    Rows are read a few times and never held: memory is two megabytes a column. The result depends
    neither on the order of rows nor on how they come in batches.

    Args:
        numbers: A plan with the columns; NaN is not allowed.
        ranks: By column; each below the count of its numbers that are not null.
    """
    searches = {name: RankSearch(wanted) for name, wanted in ranks.items() if len(wanted)}
    while unfinished := {name: s for name, s in searches.items() if not s.is_done}:
        for batch in batches(numbers.select(list(unfinished))):
            for name, search in unfinished.items():
                search.add(float_keys(batch[name].drop_nulls().to_numpy()))
        for search in unfinished.values():
            search.refine()
    return {
        name: floats_of(searches[name].keys()).tolist() if name in searches else []
        for name in ranks
    }


class RankSearch:
    """The keys at some ranks of all keys, found bit by bit in passes over them.

    A pass counts, by their next bits, the keys that begin like one of those looked for; `refine`
    then knows these bits. The first pass also sees which bits all numbers leave empty at their end
    (of float32 and small integers most are): those are never looked for.
    """

    def __init__(self, ranks: Sequence[int]) -> None:
        self._found_R = np.zeros(len(ranks), np.uint64)
        self._rest_R = np.array(ranks, np.int64)
        self._known, self._used = 0, 1 << (_KEY_BITS - 1)
        self._start_pass()

    @property
    def is_done(self) -> bool:
        """Whether all bits of the keys at the ranks are known."""
        return self._unknown == 0

    @property
    def _unknown(self) -> int:
        """How many bits are to be found yet."""
        if not self._known:
            return _KEY_BITS
        empty = (self._used & -self._used).bit_length() - 1
        return max(_KEY_BITS - empty - self._known, 0)

    def keys(self) -> Keys:
        """Return the keys at the ranks, once the search is done."""
        empty = _KEY_BITS - self._known
        ones = (1 << empty) - 1  # what an empty end is in the key of a negative number
        sign = 1 << (_KEY_BITS - 1)
        keys = [int(found) << empty for found in self._found_R]
        return np.array([key if key & sign else key | ones for key in keys], np.uint64)

    def add(self, keys_N: Keys) -> None:
        """Count more keys of this pass."""
        at_N = np.zeros(len(keys_N), np.int64)
        if not self._known:
            bits_N = np.where(keys_N >> np.uint64(_KEY_BITS - 1), keys_N, ~keys_N)
            self._used |= int(np.bitwise_or.reduce(bits_N, initial=np.uint64(0)))
        else:
            begin_N = keys_N >> np.uint64(_KEY_BITS - self._known)
            at_N = np.searchsorted(self._prefixes_P, begin_N).astype(np.int64)
            at_N = np.minimum(at_N, len(self._prefixes_P) - 1)
            inside_N = self._prefixes_P[at_N] == begin_N
            keys_N, at_N = keys_N[inside_N], at_N[inside_N]
        next_N = keys_N >> np.uint64(_KEY_BITS - self._known - self._bits)
        next_N &= np.uint64((1 << self._bits) - 1)
        cells_N = (at_N << self._bits) | next_N.astype(np.int64)
        self._counts_C += np.bincount(cells_N, minlength=len(self._counts_C))

    def refine(self) -> None:
        """End a pass: learn the next bits of each key looked for."""
        counts_PC = self._counts_C.reshape(len(self._prefixes_P), -1)
        below_PC = counts_PC.cumsum(axis=1)
        for place, prefix in enumerate(self._found_R):
            row = int(np.searchsorted(self._prefixes_P, prefix))
            cell = int(np.searchsorted(below_PC[row], self._rest_R[place], side="right"))
            if cell:
                self._rest_R[place] -= below_PC[row, cell - 1]
            self._found_R[place] = (int(prefix) << self._bits) | cell
        self._known += self._bits
        if not self.is_done:
            self._start_pass()

    def _start_pass(self) -> None:
        self._prefixes_P = np.unique(self._found_R)
        spent = (len(self._prefixes_P) - 1).bit_length()
        self._bits = min(self._unknown, max(_MOST_CELL_BITS - spent, 1))
        self._counts_C = np.zeros(len(self._prefixes_P) << self._bits, np.int64)


def float_keys(numbers_N: npt.NDArray[np.float64]) -> Keys:
    """Return unsigned integers in the order of the numbers; both zeros are one."""
    bits_N = (numbers_N + 0.0).view(np.uint64)
    sign = np.uint64(1 << 63)
    return np.where(bits_N & sign, ~bits_N, bits_N | sign)


def floats_of(keys_N: Keys) -> npt.NDArray[np.float64]:
    """Return the numbers whose keys these are."""
    sign = np.uint64(1 << 63)
    return np.where(keys_N & sign, keys_N & ~sign, ~keys_N).view(np.float64)
