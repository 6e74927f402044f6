"""Arrays on disk, read from their start without being mapped."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt


class ArrayReader:
    """An `.npy` file read some rows at a time, in order.

    A map of the file would do the same, but its pages count as memory of the process until the
    system wants them back: a pass over a large file looks like holding it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = path.open("rb")
        version = np.lib.format.read_magic(self._handle)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, self._dtype = read_header(self._handle)
        self.rows, self._rest = shape[0], tuple(shape[1:])

    def read(self, rows: int) -> npt.NDArray[Any]:
        """Return the next rows, (rows, …)."""
        shape = (rows, *self._rest)
        values = np.fromfile(self._handle, self._dtype, count=int(np.prod(shape)))
        if values.size != np.prod(shape):
            raise RuntimeError(f"{self._path}: {rows} more rows were expected than there are")
        return values.reshape(shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._handle.close()
