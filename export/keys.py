"""Key columns: which they are, and which rows repeat an earlier row's key."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from export.feeds import missing_column
from export.units import InputFile, Unit
from recsys_moe.errors import RequestError

ROW_ID = "row_id"
_ROWS_AT_ONCE = 16_000_000
_BATCH_ROWS = 1 << 17


@dataclass(frozen=True, slots=True)
class Keys:
    """The columns that identify a row in the predictions.

    Attributes:
        names: The columns; without `numbered` they are all in the input.
        numbered: The one key is `row_id`, which the input lacks: rows are numbered from 0 over
            the whole input, in file order.
    """

    names: tuple[str, ...]
    numbered: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns to read."""
        return () if self.numbered else self.names


def choose_keys(
    asked: Sequence[str], default: Sequence[str], files: Sequence[InputFile], outputs: Sequence[str]
) -> Keys:
    """Return the keys asked for, or the artifact's own.

    Raises:
        RequestError: A key is named twice or like an output, is not in every file, or is not one
            type of plain value in all of them.
    """
    names = tuple(asked or default)
    for position, name in enumerate(names):
        if name in names[:position]:
            raise RequestError("keys", wanted="each column once", got=f"{name!r} twice")
        if name in outputs:
            raise RequestError("keys", wanted="columns of the input", got=f"the output {name!r}")
    with_row_id = [file for file in files if ROW_ID in file.schema.names]
    if not asked and names == (ROW_ID,) and not with_row_id:
        return Keys(names, numbered=True)
    for name in names:
        first = None
        for file in files:
            where = f"input={file.path}"
            if name not in file.schema.names:
                raise missing_column(where, name, "the key of each row", file.schema.names)
            kind = file.schema.field(name).type
            if pa.types.is_nested(kind):
                raise RequestError(
                    f"{where}, key {name!r}", wanted="a column of plain values", got=str(kind)
                )
            first = first or kind
            if kind != first:
                raise RequestError(
                    f"{where}, key {name!r}", wanted=f"{first} as in the first file", got=str(kind)
                )
    return Keys(names)


def repeated_rows(units: Sequence[Unit], keys: Keys) -> npt.NDArray[np.int64]:
    """Return the numbers of the rows whose key an earlier row of the input has, ascending.

    Rows with a null in their key are nobody's duplicates. Keys are compared, not only hashed; the
    hash splits a large input into passes that each fit in memory.
    """
    if keys.numbered or not units:
        return np.zeros(0, np.int64)
    num_passes = 1 + sum(unit.rows for unit in units) // _ROWS_AT_ONCE
    found = [_repeated_in_pass(units, keys, number, num_passes) for number in range(num_passes)]
    return np.sort(np.concatenate(found))


def _repeated_in_pass(
    units: Sequence[Unit], keys: Keys, number: int, num_passes: int
) -> npt.NDArray[np.int64]:
    parts = []
    for unit in units:
        first_row = unit.first_row
        for table in unit.batches(keys.columns, _BATCH_ROWS):
            plain = pl.DataFrame(table).select(_comparable(name, table) for name in keys.names)
            rows = pl.int_range(first_row, first_row + plain.height, eager=True)
            frame = plain.rename({n: f"{i}" for i, n in enumerate(plain.columns)})
            frame = frame.with_columns(rows.alias("row")).drop_nulls()
            if num_passes > 1:
                chosen = frame.drop("row").hash_rows(seed=0) % num_passes == number
                frame = frame.filter(chosen)
            parts.append(frame)
            first_row += plain.height
    whole = pl.concat(parts)
    repeated = ~whole.select(pl.struct(pl.exclude("row")).is_first_distinct()).to_series()
    return whole.filter(repeated)["row"].to_numpy().astype(np.int64)


def _comparable(name: str, table: pa.Table) -> pl.Expr:
    """Categories become their text: their numbers differ from batch to batch."""
    column = pl.col(name)
    is_category = pa.types.is_dictionary(table.schema.field(name).type)
    return column.cast(pl.String) if is_category else column
