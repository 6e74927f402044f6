"""Encoded splits as memory-mapped arrays, part by part.

Shapes: N rows of a split, B rows of a part, T tasks.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from pipelines.encoding.blocks import create_array, finish_array, write_block
from pipelines.encoding.encode import codes, numbers
from pipelines.encoding.hashes import text_of, xxhash64
from pipelines.fitting.vocabulary import Vocabulary, read_vocabulary
from pipelines.prepare import prepared_files
from pipelines.rows.labels import label_arrays, weight_columns
from recsys_moe.progress import progress
from recsys_moe.runners import Runner
from recsys_moe.spec import FeatureSpec

_NO_USER = -1


@dataclass(frozen=True, slots=True)
class _Encoding:
    """What all parts of a split share."""

    spec: FeatureSpec
    split: str
    output: Path
    label_weights: list[str]

    def array(self, name: str) -> Path:
        return self.output / "tensors" / self.split / f"{name}.npy"


def write_tensors(
    spec: FeatureSpec, split: str, num_rows: int, output: Path, runner: Runner
) -> None:
    """Encode `prepared/<split>` into `tensors/<split>/*.npy`, each part into its place."""
    source, num_tasks = prepared_files(output, split), len(spec.tasks)
    encoding = _Encoding(spec, split, output, weight_columns(spec.task_names, source))
    arrays: dict[str, tuple[Any, tuple[int, ...]]] = {
        "codes": (np.int32, (num_rows, spec.num_slots)),
        "numbers": (np.float32, (num_rows, spec.num_numbers)),
        "labels": (np.float32, (num_rows, num_tasks)),
        "known": (np.float32, (num_rows, num_tasks)),
    }
    if spec.row_weight:
        arrays["weights"] = (np.float32, (num_rows,))
    if spec.user:
        arrays["users"] = (np.int64, (num_rows,))
    for name, (kind, shape) in arrays.items():
        create_array(encoding.array(name), kind, shape)
    done = 0
    with progress(split, num_rows) as advance:
        for rows in runner.map(_encode_part, encoding, _placed(source), is_light=True):
            advance(rows)
            done += rows
    if done != num_rows:
        raise RuntimeError(f"{split}: {num_rows} rows prepared, {done} encoded")
    for name in arrays:
        finish_array(encoding.array(name))


def _placed(folder: Path) -> list[tuple[Path, int]]:
    """Return each prepared file with the number of its first row."""
    placed, first = [], 0
    for path in sorted(folder.glob("*.parquet")):
        placed.append((path, first))
        first += pq.read_metadata(path).num_rows
    return placed


def _encode_part(encoding: _Encoding, unit: tuple[Path, int]) -> int:
    """Encode one prepared file into its place; return how many rows it has."""
    (path, first), spec = unit, encoding.spec
    columns = [*(column.name for column in spec.columns), *(task.label for task in spec.tasks)]
    columns += [name for name in (spec.user, spec.row_weight) if name] + encoding.label_weights
    rows = pl.read_parquet(path, columns=list(dict.fromkeys(columns)))
    vocabularies = {
        table.name: _vocabulary(encoding.output / table.vocabulary, table.sha256)
        for table in spec.tables
        if table.vocabulary is not None
    }
    labels_BT, known_BT = label_arrays(rows, spec.task_names)
    blocks: dict[str, npt.NDArray[Any]] = {
        "codes": codes(rows, spec, vocabularies),
        "numbers": numbers(rows, spec),
        "labels": labels_BT,
        "known": known_BT,
    }
    if spec.row_weight:
        blocks["weights"] = rows[spec.row_weight].cast(pl.Float32).to_numpy()
    if spec.user:
        blocks["users"] = _user_numbers(rows[spec.user])
    for name, block in blocks.items():
        write_block(encoding.array(name), first, block)
    return len(rows)


@lru_cache(maxsize=256)
def _vocabulary(path: Path, sha256: str | None) -> Vocabulary:
    """Read a vocabulary once in a process; another content has another digest."""
    return read_vocabulary(path)


def _user_numbers(users: pl.Series) -> npt.NDArray[np.int64]:
    """Return a 63-bit hash of each user, -1 for none: who it is matters to nobody here."""
    kind = "string" if users.dtype == pl.String else "int64"
    hashed = xxhash64(text_of(pl.col("user"), kind), 0) // 2
    numbers = users.to_frame("user").select(hashed.cast(pl.Int64).fill_null(_NO_USER))
    return numbers.to_series().to_numpy()
