"""Rules that a row must keep to be used, all judged at once: one bit of a number for each.

A rule is a name, which is the reason in quarantine, and an expression that is true or null where
the row is sound: as in SQL's CHECK, what is missing breaks a rule only if the rule says so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import polars as pl

from pipelines.dataset.roles import Dataset
from pipelines.encoding.expressions import expression
from recsys_moe.errors import RequestError
from recsys_moe.spec import Column

MOST_RULES = 64
_FIRST_TIME, _LAST_TIME = 0, 7_258_118_400_000_000
"""1970-01-01 and 2200-01-01 in microseconds UTC: times outside are in another unit, or wrong."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The reason why a row cannot be used, and an expression that is false where it applies."""

    name: str
    sound: pl.Expr


class RowRules:
    """Rules as one number per row: bit i is set where rule i is broken.

    >>> rules = RowRules([Rule("low", pl.col("x") > 0), Rule("odd", pl.col("x") % 2 == 0)])
    >>> frame = pl.DataFrame({"x": [-1, 2, 3, None]}).select(mask=rules.mask())
    >>> frame["mask"].to_list(), rules.reasons(3)
    ([3, 0, 2, 0], ['low', 'odd'])
    >>> frame.select(rules.words(pl.col("mask"))).to_series().to_list()
    ['low; odd', None, 'odd', None]
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        """Number the rules in their order.

        Raises:
            RequestError: There are more than a number has bits.
        """
        if len(rules) > MOST_RULES:
            got = f"{len(rules)}"
            raise RequestError("rules of rows", wanted=f"at most {MOST_RULES}", got=got)
        self.rules = tuple(rules)

    def mask(self) -> pl.Expr:
        """Return which rules each row breaks, UInt64; 0 for a row that can be used."""
        none = pl.lit(0, pl.UInt64)
        bits = [
            pl.when(~rule.sound).then(pl.lit(1 << number, pl.UInt64)).otherwise(none)
            for number, rule in enumerate(self.rules)
        ]
        return reduce(lambda some, bit: some | bit, bits, none)

    def words(self, mask: pl.Expr) -> pl.Expr:
        """Return all reasons of a mask in the order of the rules, joined by `; `; null for none."""
        named = [
            pl.when(mask & pl.lit(1 << number, pl.UInt64) != 0).then(pl.lit(rule.name))
            for number, rule in enumerate(self.rules)
        ]
        if not named:
            return pl.lit(None, pl.String)
        return pl.when(mask != 0).then(pl.concat_str(named, separator="; ", ignore_nulls=True))

    def reasons(self, mask: int) -> list[str]:
        """Return the reasons of one mask."""
        return [rule.name for number, rule in enumerate(self.rules) if mask >> number & 1]


def row_rules(dataset: Dataset, columns: dict[str, Column]) -> Iterator[Rule]:
    """Yield the rules for the roles of columns, but for labels and vectors.

    Args:
        dataset: What the dataset file says.
        columns: The types of the columns of the rows.
    """
    for key in dataset.keys:
        yield Rule(f"key {key}: missing", pl.col(key).is_not_null())
    join = dataset.source.join
    if join and join not in dataset.keys:
        yield Rule(f"join {join}: missing", pl.col(join).is_not_null())
    by_time = dataset.split.column if dataset.split.by == "time" else None
    if dataset.time and dataset.time != dataset.split.column:
        yield Rule(f"time {dataset.time}: missing", pl.col(dataset.time).is_not_null())
    for time in dict.fromkeys((dataset.time, by_time)):
        if time and columns[time].type == "int64":
            yield time_rule(time)
    for column in columns.values():
        if column.is_list:
            yield list_rule(column.name, dataset.source.max_list)
    for rule in dataset.rules:
        holds = expression(rule.expression, columns.values()) != 0
        yield Rule(f"rule {rule.name}: broken", holds)
    if dataset.row_weight:
        weight = pl.col(dataset.row_weight).cast(pl.Float32)
        finite = (weight.is_finite() & (weight >= 0)).fill_null(False)
        yield Rule(f"row weight {dataset.row_weight}: not a finite number from 0 up", finite)


def time_rule(column: str) -> Rule:
    """Return the rule that a time lies in the years in which there are logs."""
    return Rule(f"time {column}: not between 1970 and 2200", is_sane(column))


def is_sane(column: str) -> pl.Expr:
    """Return whether a time lies in the years in which there are logs; null where it is missing."""
    return pl.col(column).is_between(_FIRST_TIME, _LAST_TIME, closed="left")


def list_rule(column: str, most: int) -> Rule:
    """Return the rule that a list is not longer than anything that means it would be."""
    return Rule(f"list {column}: more than {most} elements", pl.col(column).list.len() <= most)
