"""What the train split shows of its numbers: scales, what stands in for missing ones, edges."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from pipelines.dataset.feature_roles import BucketizedRole, NumericRole
from pipelines.encoding.encode import known_number, number_of, source_number
from pipelines.encoding.expressions import with_expressions
from pipelines.fitting.moments import Moments, rounded
from pipelines.fitting.quantiles import order_statistics
from pipelines.plans import batches
from recsys_moe.spec import Bucketized, Column, Numeric


def fit_numbers(
    roles: Sequence[NumericRole | BucketizedRole], train: Path, columns: Iterable[Column] = ()
) -> dict[str, Numeric | Bucketized]:
    """Return the numeric and bucketised features by name, fitted on a folder of prepared rows.

    Expressions need the types of their columns.

    One pass sums up; where a median or edges are asked for, more passes find the exact numbers.
    Batches have the same rows in the same order whatever the number of threads, so the sums do too.
    """
    features = {role.name: _unfitted(role) for role in roles}
    open_roles = [role for role in roles if isinstance(role, NumericRole) or role.num_buckets]
    rows = pl.scan_parquet(train / "*.parquet")
    rows = with_expressions(rows, features.values(), columns)
    known = rows.select(_known(features[role.name]).alias(role.name) for role in open_roles)
    moments = {role.name: Moments() for role in open_roles}
    if open_roles:
        mine = (_transformed(features[role.name]).alias(role.name) for role in open_roles)
        for batch in batches(rows.select(mine)):
            for name, moment in moments.items():
                moment.add(batch[name])
    ranks = {role.name: _ranks(role, moments[role.name].count) for role in open_roles}
    ordered = order_statistics(known, ranks)
    for role in open_roles:
        feature, moment = features[role.name], moments[role.name]
        if isinstance(feature, Bucketized):
            edges = _edges(ordered[role.name], moment.greatest)
            features[role.name] = replace(feature, edges=edges)
        elif isinstance(role, NumericRole):
            features[role.name] = _scaled(feature, role, moment, ordered[role.name])
    return features


def _unfitted(role: NumericRole | BucketizedRole) -> Numeric | Bucketized:
    """Return a feature with all that needs no data: numbers are transformed and not yet scaled."""
    if isinstance(role, BucketizedRole):
        return Bucketized(
            name=role.name,
            column=role.column,
            expression=role.expression,
            table=role.table,
            edges=role.edges,
            allow_inf=role.allow_inf,
        )
    return Numeric(
        name=role.name,
        column=role.column,
        expression=role.expression,
        transform=role.transform,
        low=role.low,
        high=role.high,
        center=0.0,
        scale=1.0,
        clip=role.clip,
        missing_flag=role.missing_flag,
    )


def _known(feature: Numeric | Bucketized) -> pl.Expr:
    """Return the numbers to learn from as they came; infinite ones teach nothing."""
    if isinstance(feature, Numeric):
        return known_number(feature)
    number = source_number(feature)
    return pl.when(number.is_finite()).then(number)


def _transformed(feature: Numeric | Bucketized) -> pl.Expr:
    return number_of(feature) if isinstance(feature, Numeric) else _known(feature)


def _ranks(role: NumericRole | BucketizedRole, count: int) -> list[int]:
    """Return the ranks of the median or of the last number in each bucket but one."""
    if not count:
        return []
    if isinstance(role, NumericRole):
        return [(count - 1) // 2, count // 2] if role.missing == "median" else []
    buckets = role.num_buckets or 1
    return [max(-(-place * count // buckets) - 1, 0) for place in range(1, buckets)]


def _edges(numbers: Sequence[float], greatest: float) -> tuple[float, ...]:
    """Return edges as float32, each once; one with no train number above it parts nothing."""
    edges = sorted({float(np.float32(number)) for number in numbers})
    return tuple(edge for edge in edges if edge < greatest)


def _scaled(
    feature: Numeric, role: NumericRole, moment: Moments, middle: Sequence[float]
) -> Numeric:
    center, scale = 0.0, 1.0
    if role.scaling != "none":
        center, scale = moment.span() if role.scaling == "minmax" else moment.scaling()
    if role.missing == "zero" or (isinstance(role.missing, str) and not moment.count):
        fill = 0.0
    else:
        if role.missing == "mean":
            stand_in = rounded(moment.mean)
        else:
            given = middle if role.missing == "median" else [float(role.missing)]
            stand_in = sum(_apply(feature.transform, number) for number in given) / len(given)
        fill = min(max((stand_in - center) * scale, -role.clip), role.clip)
    return replace(feature, center=center, scale=scale, fill=fill)


def _apply(transform: str, number: float) -> float:
    if transform == "log1p":
        return math.log1p(number)
    return math.sqrt(number) if transform == "sqrt" else number
