"""Fitting on a new window without moving what an old one fitted: codes stay, new ones follow.

A model trained on the old features reads the new ones with the same meaning: every value keeps its
code, whatever it counts now; buckets, edges and scales stay; only what is new is fitted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.dataset.feature_roles import FeatureRole
from pipelines.dataset.roles import Dataset
from pipelines.dataset.task_roles import TaskRole
from pipelines.plans import collect
from recsys_moe.errors import RequestError
from recsys_moe.files import REQUEST, SUCCESS, sha256_file
from recsys_moe.spec import Column, Feature, FeatureSpec, Table, Task

_FITTED = ("center", "scale", "fill")
_VALUES, _BUCKETS = "categorical", "hashed"


@dataclass(frozen=True, slots=True)
class Growth:
    """The finished features that a new window continues.

    `values` has the values of every table with a vocabulary, in the order of their codes.
    """

    spec: FeatureSpec
    values: dict[str, pl.Series]

    @property
    def digest(self) -> str:
        """SHA-256 of the old spec, and so of its vocabularies."""
        return self.spec.digest


def read_growth(folder: Path) -> Growth:
    """Read the features to continue.

    Raises:
        RequestError: The folder holds no finished features, or a vocabulary is not there or not
            the one that was fitted.
    """
    if not (folder / SUCCESS).exists() or not (folder / "feature_spec.json").exists():
        got = "an unfinished one" if (folder / REQUEST).exists() else "none"
        raise RequestError(f"grow_from={folder}", wanted="a finished features folder", got=got)
    spec = FeatureSpec.load(folder / "feature_spec.json")
    listed = [table for table in spec.tables if table.vocabulary is not None]
    return Growth(spec, {table.name: _read(folder, table, "value") for table in listed})


def check_growth(dataset: Dataset, columns: Mapping[str, Column], old: FeatureSpec) -> None:
    """Refuse a dataset file that gives a known feature, column or task another meaning.

    What a spec does not hold (`min_frequency`, `max_size`, how a scale was found) may change.

    Raises:
        RequestError: It names both, what the old features have and what the dataset file says.
    """
    known_columns = {column.name: column for column in old.columns}
    features = {feature.name: feature for feature in old.features}
    tasks = {task.name: task for task in old.tasks}
    for name in dataset.input_columns:
        if name in known_columns:
            _agree(f"column {name!r}", known_columns[name], columns[name])
    for role in dataset.features:
        if role.name in features:
            _check_feature(role, features[role.name])
        _check_table(role, old)
    for task in dataset.tasks:
        if task.name in tasks:
            _check_task(task, tasks[task.name])


def _check_feature(role: FeatureRole, old: Feature) -> None:
    what = f"feature {role.name!r}"
    _same(f"{what}, kind", type(old).__name__.lower(), _kind(role))
    fitted = _FITTED if getattr(role, "edges", True) else (*_FITTED, "edges")
    _agree(what, old, role, besides=fitted)


def _kind(role: FeatureRole) -> str:
    """Return the kind that the spec gives the feature of a role: hashed ones are categorical."""
    kind = type(role).__name__.removesuffix("Role").lower()
    return _VALUES if kind == _BUCKETS else kind


def _check_table(role: FeatureRole, old: FeatureSpec) -> None:
    """Refuse another number of codes outside the vocabulary, or hashes in a vocabulary's place."""
    name = getattr(role, "table", None)
    if name not in {table.name for table in old.tables}:
        return
    table = old.table(name)
    buckets = getattr(role, "num_buckets", None)
    num_oov = getattr(role, "num_oov", buckets)
    if num_oov is None or not getattr(role, "edges", True):
        return
    what = f"table {name!r}"
    before = _BUCKETS if table.vocabulary is None else _VALUES
    _same(f"{what}, kind", before, _BUCKETS if buckets is not None else _VALUES)
    _same(f"{what}, {'num_oov' if buckets is None else 'num_buckets'}", table.num_oov, num_oov)


def _check_task(role: TaskRole, old: Task) -> None:
    for setting in ("kind", "transform"):
        _same(f"task {role.name!r}, {setting}", getattr(old, setting), getattr(role, setting))


def _agree(what: str, old: Any, new: Any, *, besides: Sequence[str] = ()) -> None:
    """Refuse settings that two dataclasses both have and that differ."""
    shared = {field.name for field in fields(new)} - set(besides)
    for field in fields(old):
        if field.name in shared:
            _same(f"{what}, {field.name}", getattr(old, field.name), getattr(new, field.name))


def _same(what: str, old: Any, new: Any) -> None:
    if old != new:
        raise RequestError(
            what, wanted=f"{old!r}, as the features that grow have it", got=repr(new)
        )


def grow_vocabulary(
    counts: pl.LazyFrame,
    old: pl.Series,
    *,
    min_frequency: int,
    max_size: int | None,
    first_code: int,
) -> pl.DataFrame:
    """Give old values their old codes, and new ones that are frequent the codes that follow.

    Args:
        counts: Columns value and count, each value of the new window once.
        old: The old values in the order of their codes.
        min_frequency: How often a new value must occur.
        max_size: How many values there may be, old ones included, which are kept in any case.
        first_code: The code of the first old value.

    Returns:
        Columns value, count (0 for an old value that does not occur) and code; new values by count
        descending, then value ascending.
    """
    known = pl.LazyFrame({"value": old, "place": pl.int_range(len(old), eager=True)})
    found = collect(
        counts.join(known, on="value", how="full", coalesce=True)
        .filter(pl.col("place").is_not_null() | (pl.col("count") >= min_frequency))
        .with_columns(pl.col("count").fill_null(0))
    )
    kept = found.filter(pl.col("place").is_not_null()).sort("place")
    new = found.filter(pl.col("place").is_null()).sort("count", "value", descending=[True, False])
    if max_size is not None:
        new = new.head(max(0, max_size - len(kept)))
    values = pl.concat([kept, new]).select("value", "count").rechunk()
    codes = pl.int_range(first_code, first_code + len(values), dtype=pl.Int64, eager=True)
    return values.with_columns(code=codes)


def grow_spec(spec: FeatureSpec, old: FeatureSpec) -> FeatureSpec:
    """Return a freshly fitted spec with all that the old one had fitted of the same names.

    Tables with a vocabulary are left: they have grown when they were fitted.
    """
    features = {feature.name: feature for feature in old.features}
    tables = {table.name: table for table in old.tables if table.vocabulary is None}
    tasks = {task.name: task for task in old.tasks}

    def scaled(task: Task) -> Task:
        known = tasks.get(task.name, task)
        return replace(task, mean=known.mean, scale=known.scale)

    return replace(
        spec,
        features=tuple(features.get(feature.name, feature) for feature in spec.features),
        tables=tuple(tables.get(table.name, table) for table in spec.tables),
        tasks=tuple(scaled(task) for task in spec.tasks),
    )


def growth_report(old: Growth, spec: FeatureSpec, output: Path) -> dict[str, Any]:
    """Return what grew: values by table, and features and tables that came or went.

    `kept` are old values that occur in the new window and `unused` those that do not; they add up
    to `size_before`, and with the `new` ones to `size_after`.
    """
    tables = {}
    for table in spec.tables:
        if table.name not in old.values:
            continue
        before, counts = old.values[table.name], _read(output, table, "count")
        unused = int((counts.head(len(before)) == 0).sum())
        tables[table.name] = {
            "kept": len(before) - unused,
            "unused": unused,
            "new": len(counts) - len(before),
            "size_before": len(before),
            "size_after": len(counts),
        }
    return {
        "old_spec": old.digest,
        "tables": tables,
        **_changes("tables", [t.name for t in old.spec.tables], [t.name for t in spec.tables]),
        **_changes(
            "features", [f.name for f in old.spec.features], [f.name for f in spec.features]
        ),
    }


def _changes(what: str, before: list[str], after: list[str]) -> dict[str, list[str]]:
    return {
        f"{what}_added": [name for name in after if name not in before],
        f"{what}_removed": [name for name in before if name not in after],
    }


def _read(folder: Path, table: Table, column: str) -> pl.Series:
    """Read a column of a table's vocabulary."""
    path = folder / str(table.vocabulary)
    what = f"table {table.name!r}, vocabulary"
    if not path.is_file():
        raise RequestError(what, wanted=f"the file {path}", got="none")
    if table.sha256 is not None and sha256_file(path) != table.sha256:
        raise RequestError(what, wanted=f"{path} as it was fitted", got="another content")
    return pl.read_parquet(path, columns=[column])[column]
