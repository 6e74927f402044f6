"""What becomes of a row: the split it is in, or the reasons why it cannot be used."""

from collections.abc import Iterator

import polars as pl

from pipelines.encoding.vectors import vector_rule
from pipelines.rows.labels import label_rule
from pipelines.rows.row_rules import RowRules, Rule, row_rules
from pipelines.rows.split import gap_of, split_of
from pipelines.work import Work

SPLIT, REASON, GAP = "\x1fassigned", "\x1freason", "\x1fgap"
_MASK = "\x1fbroken rules"


def judged(work: Work, rows: pl.LazyFrame) -> pl.LazyFrame:
    """Add the split of each row, all reasons why it cannot be used, and whether it is in a gap.

    Labels of events are judged with their logs, not here.
    """
    split, columns = work.dataset.split, work.columns
    column = columns.get(split.column or "")
    rows = rows.with_columns(split_of(split, column, work.starts).alias(SPLIT))
    unassigned = (
        f"split: no rule for the value of {split.column}"
        if split.by == "column"
        else f"split: {split.column} is missing"
    )
    rules = RowRules([*_rules(work), Rule(unassigned, pl.col(SPLIT).is_not_null())])
    return rows.with_columns(
        rules.mask().alias(_MASK), gap_of(split, column, work.starts).alias(GAP)
    ).with_columns(rules.words(pl.col(_MASK)).alias(REASON))


def sound(work: Work, rows: pl.LazyFrame) -> pl.LazyFrame:
    """Return the rows that have no fault, whatever their split."""
    return rows.filter(RowRules(list(_rules(work))).mask() == 0)


def joined_reasons(*reasons: pl.Expr) -> pl.Expr:
    """Return all reasons that apply in one text, null where none does."""
    text = pl.concat_str(reasons, separator="; ", ignore_nulls=True)
    return pl.when(text != "").then(text)


def _rules(work: Work) -> Iterator[Rule]:
    """Yield every rule of a row but that of its split."""
    dataset, columns = work.dataset, work.columns
    yield from row_rules(dataset, columns)
    for task in dataset.tasks:
        rule = None if task.events else label_rule(task, columns[task.column])
        if rule is not None:
            yield rule
    for column in columns.values():
        if column.dim:
            yield vector_rule(column)
