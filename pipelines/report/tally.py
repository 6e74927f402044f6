"""Counts over the encoded rows of a split: what its codes, numbers and labels show of the data.

Shapes: N rows of a split, B rows of a batch, L slots of a feature, S slots of all, V codes of a
table, D components of a vector (1 of a number), C those whose bins are counted, T tasks.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.batches import batches
from pipelines.encoding.encode import numbers
from pipelines.prepare import prepared_files
from pipelines.report.arrays import ArrayReader
from pipelines.report.task_tally import TaskCounts, add_labels
from recsys_moe.spec import FIRST_OOV, MISSING_CODE, PAD, FeatureSpec

_MOST_COMPONENTS = 16
_SAMPLE_ROWS = 200_000
_SAMPLE_SEED = 11

Edges = Mapping[str, Sequence[npt.NDArray[np.float32]]]


@dataclass(slots=True)
class CodeCounts:
    """How often each code of a feature occurs, and what its lists hold."""

    histogram: npt.NDArray[np.int64]
    """How often each code occurs, (V,)."""
    first_value: int
    """The first code of a listed value, or of a bucket where none is listed."""
    covered: int = 0
    """Rows with a value that is not missing."""
    empty: int = 0
    """Rows with an empty list."""

    def add(self, codes_BL: npt.NDArray[np.int32]) -> None:
        """Take in the codes of more rows."""
        codes = codes_BL.ravel()
        if len(self.histogram) <= 4 * len(codes):
            self.histogram += np.bincount(codes, minlength=len(self.histogram))
        else:  # a count of all codes would be longer than the batch
            np.add.at(self.histogram, codes, 1)
        self.covered += int((codes_BL.max(axis=1) > MISSING_CODE).sum())
        self.empty += int((codes_BL[:, 0] == PAD).sum())

    @property
    def values(self) -> int:
        """How many values there are, missing ones too; padding is none."""
        return int(self.histogram[MISSING_CODE:].sum())


@dataclass(slots=True)
class NumberCounts:
    """How many numbers of a feature are missing, and how the others fall between edges."""

    edges: Sequence[npt.NDArray[np.float32]]
    binned: list[npt.NDArray[np.int64]] = field(init=False)
    """By component, the count of each bin and, at the end, that of missing."""
    rows: int = 0
    missing: int = 0
    low: float = float("inf")
    high: float = float("-inf")

    def __post_init__(self) -> None:
        """Start from nothing."""
        self.binned = [np.zeros(len(edges) + 2, np.int64) for edges in self.edges]

    def add(self, values_BD: npt.NDArray[np.float32], missing_B: npt.NDArray[np.bool_]) -> None:
        """Take in more rows."""
        missing = int(missing_B.sum())
        self.rows, self.missing = self.rows + len(missing_B), self.missing + missing
        if missing:
            values_BD = values_BD[~missing_B]
        if len(values_BD):
            self.low = min(self.low, float(values_BD.min()))
            self.high = max(self.high, float(values_BD.max()))
        places = components(values_BD.shape[1])
        for place, edges, binned in zip(places, self.edges, self.binned, strict=False):
            bins_B = np.searchsorted(edges, values_BD[:, place], side="left")
            binned[:-1] += np.bincount(bins_B, minlength=len(edges) + 1)
            binned[-1] += missing


class Tally:
    """Counts over the rows of a split, batch by batch."""

    def __init__(self, spec: FeatureSpec, edges: Edges | None = None) -> None:
        """Start from nothing; `edges` are those of each number feature whose bins count."""
        self.spec, self.rows = spec, 0
        self.codes: dict[str, CodeCounts] = {}
        for feature in spec.code_features:
            table = spec.table(feature.table)
            first = FIRST_OOV if table.vocabulary is None else table.first_value
            self.codes[feature.name] = CodeCounts(np.zeros(table.num_codes, np.int64), first)
        self.numbers = {
            feature.name: NumberCounts((edges or {}).get(feature.name, ()))
            for feature in spec.numeric_features
        }
        self.tasks = {task.name: TaskCounts(kind=task.kind) for task in spec.tasks}

    def add_codes(self, codes_BS: npt.NDArray[np.int32]) -> None:
        """Count the codes of more rows."""
        first = 0
        for feature in self.spec.code_features:
            self.codes[feature.name].add(codes_BS[:, first : first + feature.num_slots])
            first += feature.num_slots

    def report(self, *, thinned: bool) -> dict[str, Any]:
        """Return counts and rates as plain values; `thinned` says that negatives were sampled."""
        rates = {task.name: task.keep_rate if thinned else 1.0 for task in self.spec.tasks}
        return {
            "rows": self.rows,
            "tasks": {name: counts.report(rates[name]) for name, counts in self.tasks.items()},
            "features": {
                feature.name: self._codes_report(feature.name)
                if feature.name in self.codes
                else self._numbers_report(feature.name)
                for feature in self.spec.features
            },
        }

    def is_constant(self, name: str) -> bool:
        """Say whether a feature has one value at most, missing being one."""
        if name in self.codes:
            counts = self.codes[name]
            return int(np.count_nonzero(counts.histogram[MISSING_CODE:])) + (counts.empty > 0) <= 1
        number = self.numbers[name]
        if number.missing == number.rows:
            return True
        return not number.missing and number.low == number.high

    def _codes_report(self, name: str) -> dict[str, Any]:
        feature = next(f for f in self.spec.code_features if f.name == name)
        counts, table = self.codes[name], self.spec.table(feature.table)
        missing = int(counts.histogram[MISSING_CODE])
        found: dict[str, Any] = {"values": counts.values, "missing": missing}
        if table.vocabulary is not None:
            found["oov"] = int(counts.histogram[FIRST_OOV : table.first_value].sum())
        if getattr(feature, "max_len", None) is not None:
            found["empty_lists"] = counts.empty
        found["missing_rate"] = share(missing, counts.values)
        if "oov" in found:
            found["oov_rate"] = share(found["oov"], counts.values)
        return {**found, "coverage": share(counts.covered, self.rows)}

    def _numbers_report(self, name: str) -> dict[str, Any]:
        counts = self.numbers[name]
        return {
            "values": counts.rows,
            "missing": counts.missing,
            "missing_rate": share(counts.missing, counts.rows),
            "coverage": share(counts.rows - counts.missing, counts.rows),
        }


def share(part: float, whole: float) -> float | None:
    """Return a quotient to nine decimals, None of nothing."""
    return round(part / whole, 9) if whole else None


def components(width: int) -> list[int]:
    """Return the components of a vector whose bins are counted: all, or 16 evenly spaced.

    >>> components(3), len(components(768))
    ([0, 1, 2], 16)
    """
    return sorted({int(n) for n in np.linspace(0, width - 1, min(width, _MOST_COMPONENTS))})


def tally_split(
    spec: FeatureSpec, split: str, output: Path, *, edges: Edges | None = None, time: str | None
) -> Tally:
    """Count what `tensors/<split>` and `prepared/<split>` hold, in one pass of bounded memory.

    Args:
        spec: What was fitted.
        split: Which split.
        output: The features folder.
        edges: Edges of the number features, by component.
        time: The column of `prepared/` with the microseconds by which labels are counted per day.
    """
    tally, folder = Tally(spec, edges), output / "tensors" / split
    columns = [name for feature in spec.numeric_features for name in feature.columns]
    with ExitStack() as stack:

        def reader(name: str) -> ArrayReader:
            return stack.enter_context(ArrayReader(folder / f"{name}.npy"))

        codes, labels, known = reader("codes"), reader("labels"), reader("known")
        for batch in batches(prepared_files(output, split), [*columns, time or "row_id"]):
            tally.add_codes(codes.read(len(batch)))
            for name, values_BD, missing_B in raw_numbers(spec, batch):
                tally.numbers[name].add(values_BD, missing_B)
            times = batch[time] if time else None
            labels_BT, known_BT = labels.read(len(batch)), known.read(len(batch))
            add_labels(spec, tally.tasks, labels_BT, known_BT, times)
            tally.rows += len(batch)
        if tally.rows != codes.rows:
            raise RuntimeError(f"{split}: {tally.rows} rows prepared, {codes.rows} encoded")
    return tally


def raw_numbers(
    spec: FeatureSpec, batch: pl.DataFrame
) -> Iterator[tuple[str, npt.NDArray[np.float32], npt.NDArray[np.bool_]]]:
    """Yield name, scaled values (B, D) and which are missing (B,) of each number feature.

    The tensors do not say what is missing without a flag, so all are encoded again with one.
    """
    flagged = tuple(replace(feature, missing_flag=True) for feature in spec.numeric_features)
    if not flagged:
        return
    numbers_BK = numbers(batch, replace(spec, features=flagged))
    first = 0
    for feature in flagged:
        last = first + feature.num_numbers - 1
        yield feature.name, numbers_BK[:, first:last], numbers_BK[:, last] != 0
        first = last + 1


def sample_numbers(spec: FeatureSpec, output: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Return values of each number feature that are not missing, of up to 200,000 train rows.

    One row of each stretch of equal length, drawn with a fixed seed: every k-th row would always
    find the same place of a page.
    """
    columns = [name for feature in spec.numeric_features for name in feature.columns]
    if not columns:
        return {}
    stride = max(1, -(-spec.train_rows // _SAMPLE_ROWS))
    starts = np.arange(0, spec.train_rows, stride)
    draw = np.random.default_rng(_SAMPLE_SEED)
    drawn = starts + draw.integers(0, stride, len(starts))
    parts: dict[str, list[npt.NDArray[np.float32]]] = {f.name: [] for f in spec.numeric_features}
    first = 0
    for batch in batches(prepared_files(output, "train"), columns):
        low, high = np.searchsorted(drawn, [first, first + len(batch)])
        for name, values_BD, missing_B in raw_numbers(spec, batch[drawn[low:high] - first]):
            parts[name].append(values_BD[~missing_B])
        first += len(batch)
    return {name: np.concatenate(values) for name, values in parts.items()}
