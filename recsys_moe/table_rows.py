"""Which row of which old table means the same as a row of a new one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys_moe.errors import RequestError
from recsys_moe.files import sha256_file
from recsys_moe.modules.embeddings import first_rows
from recsys_moe.spec import FIRST_OOV, FeatureSpec, Table


@dataclass(frozen=True, slots=True, eq=False)
class TableMove:
    """The rows of one table that move: from where in the old matrix, to where in the new one."""

    table: str
    old_rows: NDArray[np.int64]
    new_rows: NDArray[np.int64]
    num_rows: int
    """Rows of the new table."""
    num_left: int
    """Rows of the old table that have no place in the new one."""


def table_moves(
    old_spec: FeatureSpec, old_folder: Path, spec: FeatureSpec, folder: Path
) -> list[TableMove]:
    """Return the moves of every table of a spec, none of its rows for a table that is new.

    Args:
        old_spec: The spec of the trained model.
        old_folder: Where its vocabularies lie, by the paths in it.
        spec: The spec of the model to start.
        folder: Where its vocabularies lie.

    Raises:
        RequestError: A vocabulary is not there, or not the one its spec was written with.
    """
    old_starts, starts = first_rows(old_spec), first_rows(spec)
    moves = []
    for table in spec.tables:
        codes = np.empty((2, 0), np.int64)
        num_old = 0
        if same_table(old_spec, spec, table.name):
            old = old_spec.table(table.name)
            codes, num_old = _codes(old, old_folder, table, folder), old.num_codes
        moves.append(
            TableMove(
                table=table.name,
                old_rows=codes[0] + old_starts.get(table.name, 0),
                new_rows=codes[1] + starts[table.name],
                num_rows=table.num_codes,
                num_left=num_old - codes.shape[1],
            )
        )
    return moves


def same_table(old_spec: FeatureSpec, spec: FeatureSpec, name: str) -> bool:
    """Say whether codes of a table mean the same kind of thing in two specs.

    A table with a vocabulary means its values. The codes of one without mean what the features
    that read it make of them: sizes must be equal, and so must a feature that both specs have.
    """
    if name not in {table.name for table in old_spec.tables}:
        return False
    old, table = old_spec.table(name), spec.table(name)
    if table.vocabulary is not None or old.vocabulary is not None:
        types = [_value_type(each, name) for each in (old_spec, spec)]
        both = table.vocabulary is not None and old.vocabulary is not None
        return both and types[0] == types[1]
    readers = {f.name: f for f in spec.code_features if f.table == name}
    pairs = [(f, readers[f.name]) for f in old_spec.code_features if f.name in readers]
    sizes_agree = (old.num_codes, old.num_oov) == (table.num_codes, table.num_oov)
    return sizes_agree and bool(pairs) and all(before == after for before, after in pairs)


def _value_type(spec: FeatureSpec, table: str) -> str:
    feature = next(f for f in spec.code_features if f.table == table)
    return spec.column(feature.columns[0]).type


def _codes(old: Table, old_folder: Path, table: Table, folder: Path) -> NDArray[np.int64]:
    """Return old and new codes of the same meaning, (2, N)."""
    if table.vocabulary is None:
        return np.tile(np.arange(table.num_codes), (2, 1))
    num_fixed = table.first_value if old.num_oov == table.num_oov else FIRST_OOV
    fixed = np.tile(np.arange(num_fixed), (2, 1))
    both = _vocabulary(old, old_folder).join(
        _vocabulary(table, folder), on="value", suffix="_new", maintain_order="right"
    )
    values = both.select("code", "code_new").to_numpy().T
    return np.concatenate([fixed, values], axis=1).astype(np.int64)


def _vocabulary(table: Table, folder: Path) -> pl.DataFrame:
    path = folder / str(table.vocabulary)
    what = f"table {table.name!r}, vocabulary"
    if not path.is_file():
        raise RequestError(what, wanted=f"the file {path}", got="none")
    if table.sha256 is not None and sha256_file(path) != table.sha256:
        raise RequestError(what, wanted=f"{path} as it was fitted", got="another content")
    return pl.read_parquet(path, columns=["value", "code"])
