"""Encoded splits as memory-mapped arrays, and what they show about the data.

Shapes: N rows of a split, B rows of a batch, T tasks.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.batches import batches
from pipelines.encode import codes, number_of, numbers
from pipelines.prepare import prepared_files
from pipelines.vocabulary import Vocabulary
from recsys_moe.files import whole_file
from recsys_moe.progress import progress
from recsys_moe.spec import FIRST_OOV, MISSING_CODE, PAD, Bucketized, FeatureSpec, Numeric


@dataclass(slots=True)
class Tally:
    """Counts over the rows of a split, batch by batch."""

    rows: int = 0
    features: dict[str, dict[str, int]] = field(default_factory=dict)
    tasks: dict[str, dict[str, int]] = field(default_factory=dict)

    def add_codes(self, spec: FeatureSpec, codes_BS: npt.NDArray[np.int32]) -> None:
        """Count values, missing ones and those outside the vocabulary."""
        first = 0
        for feature in spec.code_features:
            mine = codes_BS[:, first : first + feature.num_slots]
            first += feature.num_slots
            table = spec.table(feature.table)
            counts = {
                "values": int((mine != PAD).sum()),
                "missing": int((mine == MISSING_CODE).sum()),
            }
            if table.vocabulary is not None:
                unseen = (mine >= FIRST_OOV) & (mine < table.first_value)
                counts["oov"] = int(unseen.sum())
            if not isinstance(feature, Bucketized) and feature.max_len is not None:
                counts["empty_lists"] = int((mine[:, 0] == PAD).sum())
            _add(self.features, feature.name, counts)

    def add_numbers(self, feature: Numeric, missing: int, rows: int) -> None:
        """Count the values of a numeric feature and how many of them are missing."""
        _add(self.features, feature.name, {"values": rows, "missing": missing})

    def add_labels(
        self, spec: FeatureSpec, labels_BT: npt.NDArray[np.uint8], known_BT: npt.NDArray[np.uint8]
    ) -> None:
        """Count labels in each task's own space."""
        places = {name: place for place, name in enumerate(spec.task_names)}
        for name, place in places.items():
            inside_B = np.ones(len(labels_BT), bool)
            for parent in spec.chain(name)[:-1]:
                inside_B &= labels_BT[:, places[parent]] == 1
            known_B = inside_B & (known_BT[:, place] == 1)
            counts = {
                "rows": int(inside_B.sum()),
                "known": int(known_B.sum()),
                "positives": int((known_B & (labels_BT[:, place] == 1)).sum()),
            }
            _add(self.tasks, name, counts)

    def report(self) -> dict[str, Any]:
        """Return counts and rates as plain values."""
        return {
            "rows": self.rows,
            "tasks": {
                name: {**counts, "rate": _share(counts["positives"], counts["known"])}
                for name, counts in self.tasks.items()
            },
            "features": {
                name: {
                    **counts,
                    "missing_rate": _share(counts["missing"], counts["values"]),
                    **(
                        {"oov_rate": _share(counts["oov"], counts["values"])}
                        if "oov" in counts
                        else {}
                    ),
                }
                for name, counts in self.features.items()
            },
        }


def _add(totals: dict[str, dict[str, int]], name: str, counts: dict[str, int]) -> None:
    known = totals.setdefault(name, dict.fromkeys(counts, 0))
    for key, count in counts.items():
        known[key] += count


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 9) if whole else None


def write_tensors(
    spec: FeatureSpec,
    split: str,
    num_rows: int,
    vocabularies: Mapping[str, Vocabulary],
    output: Path,
) -> Tally:
    """Encode `prepared/<split>` into `tensors/<split>/*.npy`, a batch at a time.

    Returns:
        The counts of what was encoded.
    """
    source, folder, tally = prepared_files(output, split), output / "tensors" / split, Tally()
    users = _users(spec, source)
    num_tasks = len(spec.tasks)
    columns = [*(column.name for column in spec.columns), *(task.label for task in spec.tasks)]
    columns += [name for name in (spec.user, spec.row_weight) if name]
    with ExitStack() as stack, progress(f"{split}", num_rows) as advance:

        def array(name: str, kind: Any, *shape: int) -> npt.NDArray[Any]:
            path = folder / f"{name}.npy"
            return stack.enter_context(_whole_array(path, kind, (num_rows, *shape)))

        codes_NS = array("codes", np.int32, spec.num_slots)
        numbers_NK = array("numbers", np.float32, spec.num_numbers)
        labels_NT = array("labels", np.uint8, num_tasks)
        known_NT = array("known", np.uint8, num_tasks)
        weights_N = array("weights", np.float32) if spec.row_weight else None
        users_N = array("users", np.int64) if spec.user else None
        for batch in batches(source, columns):
            rows = slice(tally.rows, tally.rows + len(batch))
            codes_NS[rows] = codes(batch, spec, vocabularies)
            numbers_NK[rows] = numbers(batch, spec)
            labels = batch.select(task.label for task in spec.tasks)
            labels_NT[rows] = labels.fill_null(0).to_numpy()
            known_NT[rows] = labels.select(pl.all().is_not_null()).to_numpy()
            if weights_N is not None:
                weights_N[rows] = batch[spec.row_weight or ""].cast(pl.Float32).to_numpy()
            if users_N is not None and users is not None:
                users_N[rows] = users.positions(batch[spec.user or ""])
            tally.add_codes(spec, codes_NS[rows])
            _tally_numbers(tally, spec, batch)
            tally.add_labels(spec, labels_NT[rows], known_NT[rows])
            tally.rows = rows.stop
            advance(len(batch))
    if tally.rows != num_rows:
        raise RuntimeError(f"{split}: {num_rows} rows prepared, {tally.rows} encoded")
    return tally


def _tally_numbers(tally: Tally, spec: FeatureSpec, batch: pl.DataFrame) -> None:

    features = spec.numeric_features
    missing = batch.select(
        number_of(f.column, f.log1p).is_null().sum().alias(f.name) for f in features
    )
    for feature in features:
        tally.add_numbers(feature, int(missing[feature.name].item()), len(batch))


def _users(spec: FeatureSpec, source: Path) -> Vocabulary | None:
    """Return the distinct users of a split, in ascending order, so that each has a dense id."""
    if spec.user is None:
        return None
    rows = pl.scan_parquet(source / "*.parquet").select(pl.col(spec.user).unique())
    return Vocabulary(rows.collect(engine="streaming").to_series().drop_nulls().sort())


@contextmanager
def _whole_array(path: Path, kind: Any, shape: tuple[int, ...]) -> Iterator[npt.NDArray[Any]]:
    """Yield a mapped array of zeros that becomes the file `path` when all went well."""
    with whole_file(path) as partial:
        if 0 in shape:
            empty = np.zeros(shape, kind)  # nothing can be mapped
            with partial.open("wb") as handle:
                np.save(handle, empty)
            yield empty
            return
        mapped = np.lib.format.open_memmap(partial, mode="w+", dtype=kind, shape=shape)
        yield mapped
        mapped.flush()
