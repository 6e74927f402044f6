"""Labels: from a source column to 1, 0 or unknown, and what makes a row's label a fault."""

import polars as pl

from pipelines.checked import Faults, Value, quote, shown
from pipelines.roles import TaskRole
from recsys_moe.spec import Column


def label(task: TaskRole, column: Column) -> pl.Expr:
    """Return a task's label as int64 0 or 1, null where it is unknown."""
    value = _known(column)
    if task.positive is None:
        return value.cast(pl.Int64).alias(task.name)
    positive = is_one_of(value, task.positive).cast(pl.Int64)
    return pl.when(value.is_not_null()).then(positive).alias(task.name)


def label_fault(task: TaskRole, column: Column) -> pl.Expr:
    """Return the reason why a row's label cannot be used, null where it can."""
    value = _known(column)
    if task.positive is None:
        sound, wanted = is_one_of(value, (0, 1)), "0 or 1"
    elif task.negative is None:
        return pl.lit(None, pl.String)
    else:
        sound = is_one_of(value, (*task.positive, *task.negative))
        wanted = "a listed value"
    reason = pl.lit(f"label of {task.name}: not {wanted}")
    return pl.when(value.is_not_null() & ~sound).then(reason)


def _known(column: Column) -> pl.Expr:
    """Return a label's source; not a number is unknown, like null."""
    value = pl.col(column.name)
    return value.fill_nan(None) if column.type == "float32" else value


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
            faults.note(path, wanted=wanted, got=f"{task.column!r}, which holds strings")
        for name, values in (("positive", task.positive), ("negative", task.negative)):
            check_values(f"{path}.{name}", column, values or (), faults)
