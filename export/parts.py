"""What one unit leaves: a part with keys and scores, and the rows that could not be scored."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from export.faults import Faults, count, labels
from export.keys import Keys
from export.units import Unit
from recsys_moe.errors import RecsysMoeError
from recsys_moe.files import sha256_file, whole_file

PARTS, QUARANTINE = "parts", "quarantine"
REASONS, MESSAGE = "_reasons", "_message"

_BATCH_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of one batch.

    Attributes:
        unit: Where its rows are from.
        keys: Key columns of all its rows; numbered keys have none.
        scores: Each output, float32 [rows].
        faults: The rows without a score.
    """

    unit: Unit
    keys: pa.Table
    scores: dict[str, npt.NDArray[np.float32]]
    faults: Faults


@dataclass(slots=True)
class Part:
    """What is known so far of one unit; `rows` of its rows have been added."""

    unit: Unit
    keys: Keys
    rows: int = 0
    _tables: list[pa.Table] = field(default_factory=list)
    _flags: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    _details: dict[int, list[str]] = field(default_factory=dict)

    def add(self, batch: Scored) -> None:
        """Take the next batch of the unit."""
        faults, num_rows = batch.faults, len(batch.faults.flags)
        columns = {name: pa.array(values) for name, values in batch.scores.items()}
        if self.keys.numbered:
            first = self.unit.first_row + self.rows
            numbers = {self.keys.names[0]: pa.array(np.arange(first, first + num_rows))}
        else:
            numbers = {name: batch.keys[name] for name in self.keys.names}
        self._tables.append(pa.table(numbers | columns).filter(pa.array(faults.good)))
        self._flags.append(faults.flags)
        self._details |= {self.rows + row: texts for row, texts in faults.details.items()}
        self.rows += num_rows

    def write(self, output: Path) -> dict[str, Any]:
        """Write the unit's files, each whole or not at all; return its line for the journal."""
        flags = np.concatenate(self._flags)
        scored = pa.concat_tables(self._tables, promote_options="permissive")
        bad = np.flatnonzero(flags)
        if not self.unit.rows == self.rows == scored.num_rows + len(bad):
            raise RecsysMoeError(
                f"{self.unit.name}: wanted {self.unit.rows} rows, got {scored.num_rows} scored and "
                f"{len(bad)} quarantined"
            )
        line = {
            "unit": self.unit.name,
            "rows": self.rows,
            "scored": scored.num_rows,
            "quarantined": len(bad),
            "reasons": count(flags),
            "quarantine": None,
        }
        if len(bad):
            line["quarantine"] = _write(
                quarantine_path(output, self.unit.name), self._quarantined(flags, bad)
            )
        line["part"] = _write(part_path(output, self.unit.name), scored)
        return line

    def _quarantined(self, flags: npt.NDArray[np.uint8], bad: npt.NDArray[Any]) -> pa.Table:
        """Read the bad rows again, now with every column they came with, and say what is wrong."""
        tables, first = [], 0
        for table in self.unit.batches(None, _BATCH_ROWS):
            rows = bad[(bad >= first) & (bad < first + table.num_rows)]
            tables.append(table.take(pa.array(rows - first)))
            first += table.num_rows
        rows = pa.concat_tables(tables, promote_options="permissive")
        keys = {name: rows[name] for name in self.keys.columns}
        if self.keys.numbered:
            keys = {self.keys.names[0]: pa.array(self.unit.first_row + bad)}
        reasons = pa.array([labels(int(flags[row])) for row in bad], pa.list_(pa.string()))
        texts = ["; ".join(self._details.get(int(row), ())) or None for row in bad]
        ours = {REASONS: reasons, MESSAGE: pa.array(texts, pa.string())}
        others = {n: rows[n] for n in rows.column_names if n not in keys and n not in ours}
        return pa.table(keys | others | ours)


def part_path(output: Path, unit: str) -> Path:
    """Return the path of a unit's part."""
    return output / PARTS / f"part-{unit}.parquet"


def quarantine_path(output: Path, unit: str) -> Path:
    """Return the path of a unit's rows that could not be scored."""
    return output / QUARANTINE / f"bad-{unit}.parquet"


def _write(path: Path, table: pa.Table) -> dict[str, Any]:
    """Write a table whole; the same table gives the same bytes. Return its size and digest."""
    plain = table.replace_schema_metadata(None).combine_chunks()
    with whole_file(path) as partial:
        pq.write_table(
            plain,
            partial,
            row_group_size=1 << 20,
            version="2.6",
            data_page_version="1.0",
            compression="zstd",
            compression_level=3,
            use_dictionary=False,
            write_statistics=True,
            store_schema=True,
        )
        record = {"bytes": partial.stat().st_size, "sha256": sha256_file(partial)}
    return record


def total(lines: Sequence[dict[str, Any]], units: Sequence[Unit], output: Path) -> dict[str, Any]:
    """Add up the journal lines of all units; the rows of the input must all be there."""
    names = [unit.name for unit in units]
    reasons: dict[str, int] = {}
    for line in lines:
        for name, number in line["reasons"].items():
            reasons[name] = reasons.get(name, 0) + number
    summary = {
        "rows_in": sum(unit.rows for unit in units),
        "rows_scored": sum(line["scored"] for line in lines),
        "rows_quarantined": sum(line["quarantined"] for line in lines),
        "reasons": dict(sorted(reasons.items())),
    }
    if [line["unit"] for line in lines] != names or (
        summary["rows_in"] != summary["rows_scored"] + summary["rows_quarantined"]
    ):
        raise RecsysMoeError(f"{output}: wanted each of {len(names)} units once, got {summary}")
    return summary
