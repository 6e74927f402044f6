"""Labels: from a source column to a number or unknown, and what makes a row's label a fault."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.dataset.checked import Faults, Value, quote, shown
from pipelines.dataset.task_roles import TaskRole
from pipelines.rows.row_rules import Rule
from recsys_moe.spec import Column


def label(task: TaskRole, column: Column) -> pl.Expr:
    """Return a task's label, null where it is unknown: int64 0 or 1, or float32 of a regression."""
    value = _known(column)
    if task.kind == "regression":
        return value.cast(pl.Float32).alias(task.name)
    if task.positive is None:
        return value.cast(pl.Int64).alias(task.name)
    positive = is_one_of(value, task.positive).cast(pl.Int64)
    return pl.when(value.is_not_null()).then(positive).alias(task.name)


def label_rule(task: TaskRole, column: Column) -> Rule | None:
    """Return the rule that a row's label can be used; None if every value can."""
    value = _known(column)
    if task.kind == "regression":
        number = value.cast(pl.Float32)
        sound, wanted = number.is_finite(), "a finite number"
        if task.transform == "log1p":
            sound, wanted = sound & (number >= 0), "a finite number from 0 up"
    elif task.positive is None:
        sound, wanted = is_one_of(value, (0, 1)), "0 or 1"
    elif task.negative is None:
        return None
    else:
        sound = is_one_of(value, (*task.positive, *task.negative))
        wanted = "a listed value"
    return Rule(f"label of {task.name}: not {wanted}", value.is_null() | sound)


def _known(column: Column) -> pl.Expr:
    """Return a label's source; not a number is unknown, like null."""
    value = pl.col(column.name)
    return value.fill_nan(None) if column.type == "float32" else value


def weight_column(task: str) -> str:
    """Return the column of prepared rows, if it is there, that says how much a label counts."""
    return f"weight_{task}"


def weight_columns(tasks: Iterable[str], folder: Path) -> list[str]:
    """Return those of these columns that a folder of prepared rows has."""
    there = pl.scan_parquet(folder / "*.parquet").collect_schema()
    return [name for name in map(weight_column, tasks) if name in there]


def known_weight(task: str, columns: Collection[str]) -> pl.Expr:
    """Return how much a prepared row's label counts, float32: 0 where it is unknown."""
    name = weight_column(task)
    weight = pl.col(name).cast(pl.Float32).fill_null(0) if name in columns else pl.lit(1.0)
    known = pl.when(pl.col(task).is_not_null()).then(weight).otherwise(0.0)
    return known.cast(pl.Float32).alias(task)


def label_arrays(
    rows: pl.DataFrame, tasks: Sequence[str]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return labels, 0 where unknown, and how much each counts, of prepared rows: (B, T) each."""
    labels = rows.select(pl.col(task).cast(pl.Float32).fill_null(0) for task in tasks)
    known = rows.select(known_weight(task, rows.columns) for task in tasks)
    return labels.to_numpy(), known.to_numpy()


def is_one_of(value: pl.Expr, listed: tuple[Value, ...]) -> pl.Expr:
    """Say whether a value is one of those listed; false for null."""
    plain = [int(item) if isinstance(item, bool) else item for item in listed]
    same = [value.eq_missing(pl.lit(item)) for item in plain]
    return pl.any_horizontal(same) if same else pl.lit(False)


def check_values(
    path: str, column: Column | None, listed: tuple[Value, ...], faults: Faults
) -> None:
    """Note the listed values that a column of its type cannot hold."""
    if column is None:
        return
    sound: tuple[type, ...] = (str,) if column.type == "string" else (int, float, bool)
    wrong = [value for value in listed if not isinstance(value, sound)]
    if column.type == "int64":
        wrong += [value for value in listed if isinstance(value, float)]
    if wrong:
        wanted = f"values of type {column.type}, as {column.name!r}"
        faults.note(path, wanted=wanted, got=shown(wrong[0]) + quote(wrong))


def check_tasks(tasks: tuple[TaskRole, ...], columns: dict[str, Column], faults: Faults) -> None:
    """Note labels that their columns cannot give."""
    for task in tasks:
        column = columns.get(task.column)
        path = f"{task.path}.label"
        if column is not None and task.positive is None and column.type == "string":
            wanted = "a column of 0 and 1 or truth values, or {column: …, positive: …}"
            if task.kind == "regression":
                wanted = "a column of numbers"
            faults.note(path, wanted=wanted, got=f"{task.column!r}, which holds strings")
        for name, values in (("positive", task.positive), ("negative", task.negative)):
            check_values(f"{path}.{name}", column, values or (), faults)
