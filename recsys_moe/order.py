"""The order in which an epoch visits the rows: a pure function of (seed, epoch, rows)."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 8192
WINDOW_BLOCKS = 64


def epoch_order(
    num_rows: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    block_rows: int = BLOCK_ROWS,
    window_blocks: int = WINDOW_BLOCKS,
) -> Iterator[NDArray[np.int64]]:
    """Yield row numbers from position `start` of an epoch's order on, a window at a time.

    Blocks of neighbouring rows are permuted, and the rows of each window of blocks once more. So a
    memory-mapped file is read in large pieces, a window's row numbers are all that is held, and any
    position is reached without walking to it.
    """
    num_blocks = -(-num_rows // block_rows)
    blocks = _generator(seed, epoch).permutation(num_blocks)
    for window, first in enumerate(range(0, num_blocks, window_blocks)):
        chosen = blocks[first : first + window_blocks]
        size = len(chosen) * block_rows
        if num_blocks - 1 in chosen:
            size -= num_blocks * block_rows - num_rows
        if start >= size:
            start -= size
            continue
        rows = (chosen[:, None] * block_rows + np.arange(block_rows)).ravel()
        rows = rows[rows < num_rows]
        yield _generator(seed, epoch, window).permutation(rows)[start:]
        start = 0


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
