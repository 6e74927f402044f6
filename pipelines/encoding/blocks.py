"""Arrays on disk, written block by block by whoever has the rows, and mapped later.

Blocks go to their place by `pwrite`: nothing is mapped while writing, so that the pages of a large
array do not count as this process's memory.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys_moe.files import sync_folder


def create_array(path: Path, kind: Any, shape: Sequence[int]) -> None:
    """Make room for an array; it has another name until `finish_array`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": tuple(shape)}
    with _partial(path).open("wb") as handle:
        np.lib.format.write_array_header_1_0(handle, header)
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
        handle.truncate(handle.tell() + size)


def write_block(path: Path, first: int, block: npt.NDArray[Any]) -> None:
    """Write rows into an array, from row `first` on.

    Args:
        path: The array's final name.
        first: The number of the block's first row.
        block: Rows of the array's type and width.
    """
    with _partial(path).open("r+b") as handle:
        np.lib.format.read_magic(handle)
        shape, _, kind = np.lib.format.read_array_header_1_0(handle)
        if block.dtype != kind or block.shape[1:] != shape[1:]:
            got = f"{block.dtype} of shape {block.shape}"
            raise ValueError(f"{path}: wanted {kind} rows of {shape}, got {got}")
        if not block.size:
            return
        row_bytes = block.nbytes // len(block)
        data = memoryview(np.ascontiguousarray(block).data).cast("B")
        position = handle.tell() + first * row_bytes
        while len(data):
            written = os.pwrite(handle.fileno(), data, position)
            data, position = data[written:], position + written


def finish_array(path: Path) -> None:
    """Give an array its name, once all of it is on disk."""
    partial = _partial(path)
    with partial.open("rb") as handle:
        os.fsync(handle.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")
