"""From prepared rows to codes and numbers, as the spec says; the exported graph does the same.

Shapes: B rows of a batch, L slots of a feature, S slots of all, K numbers of all features,
N list elements of a batch.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.hashes import murmur32, text_of
from pipelines.vocabulary import Vocabulary
from recsys_moe.spec import (
    FIRST_OOV,
    MISSING_CODE,
    PAD,
    Bucketized,
    Categorical,
    Column,
    FeatureSpec,
    Numeric,
    Table,
)


def codes(
    batch: pl.DataFrame, spec: FeatureSpec, vocabularies: Mapping[str, Vocabulary]
) -> npt.NDArray[np.int32]:
    """Return the codes of a batch, (B, S)."""
    codes_BS = np.full((len(batch), spec.num_slots), PAD, np.int32)
    first = 0
    for feature in spec.code_features:
        slots = slice(first, first + feature.num_slots)
        table = spec.table(feature.table)
        if isinstance(feature, Bucketized):
            codes_BS[:, first] = bucket_codes(batch[feature.column], feature)
        elif feature.max_len is None:
            column = spec.column(feature.column)
            codes_BS[:, first] = value_codes(
                batch[feature.column], column, table, vocabularies.get(table.name)
            )
        else:
            codes_BS[:, slots] = _list_codes(batch, spec, feature, table, vocabularies)
        first = slots.stop
    return codes_BS


def _list_codes(
    batch: pl.DataFrame,
    spec: FeatureSpec,
    feature: Categorical,
    table: Table,
    vocabularies: Mapping[str, Vocabulary],
) -> npt.NDArray[np.int32]:
    """Return the codes of the first elements of each list, pad on the right, (B, L)."""
    num_slots = feature.num_slots
    lists = batch[feature.column].list.head(num_slots)
    codes_BL = np.full((len(batch), num_slots), PAD, np.int32)
    lengths_B = lists.list.len().fill_null(0).to_numpy()
    elements = lists.explode(empty_as_null=False, keep_nulls=False)
    filled_BL = np.arange(num_slots) < lengths_B[:, None]
    codes_BL[filled_BL] = value_codes(
        elements, spec.column(feature.column), table, vocabularies.get(table.name)
    )
    return codes_BL


def value_codes(
    values: pl.Series, column: Column, table: Table, vocabulary: Vocabulary | None
) -> npt.NDArray[np.int32]:
    """Return the codes of single values, (N,): missing, hashed or from the vocabulary."""
    codes_N = np.full(len(values), MISSING_CODE, np.int64)
    if vocabulary is not None:
        at_N = vocabulary.positions(values)
        codes_N = np.where(at_N >= 0, at_N + table.first_value, codes_N)
        unlisted_N = (at_N < 0) & values.is_not_null().to_numpy()
    else:
        unlisted_N = values.is_not_null().to_numpy()
    if unlisted_N.any():
        others = values.filter(pl.Series(unlisted_N))
        hashes = pl.select(murmur32(text_of(pl.lit(others), column.type))).to_series()
        codes_N[unlisted_N] = FIRST_OOV + hashes.to_numpy() % table.num_oov
    return codes_N.astype(np.int32)


def bucket_codes(values: pl.Series, feature: Bucketized) -> npt.NDArray[np.int32]:
    """Return 2, 3, … for the right-closed interval that each number lies in, (B,)."""
    numbers_B = values.cast(pl.Float64).fill_null(np.nan).to_numpy()
    codes_B = FIRST_OOV + np.searchsorted(np.asarray(feature.edges), numbers_B, side="left")
    return np.where(np.isfinite(numbers_B), codes_B, MISSING_CODE).astype(np.int32)


def numbers(batch: pl.DataFrame, spec: FeatureSpec) -> npt.NDArray[np.float32]:
    """Return the scaled numbers of a batch, each followed by its missing flag if any, (B, K)."""
    numbers_BK = np.zeros((len(batch), spec.num_numbers), np.float32)
    expressions = [
        expression for feature in spec.numeric_features for expression in _scaled(feature)
    ]
    for place, series in enumerate(batch.select(expressions)):
        numbers_BK[:, place] = series.to_numpy()
    return numbers_BK


def _scaled(feature: Numeric) -> list[pl.Expr]:
    number = number_of(feature.column, feature.log1p)
    scaled = ((number - feature.mean) * feature.scale).clip(-feature.clip, feature.clip)
    value = scaled.fill_null(0.0).cast(pl.Float32).alias(f"{feature.name}\x1fvalue")
    flag = number.is_null().cast(pl.Float32).alias(f"{feature.name}\x1fmissing")
    return [value, flag] if feature.missing_flag else [value]


def number_of(column: str, log1p: bool) -> pl.Expr:
    """Return a column in float64, through log(1 + x) if asked for; null where it is missing."""
    number = pl.col(column).cast(pl.Float64)
    sound = number.is_finite() & (number >= 0) if log1p else number.is_finite()
    number = pl.when(sound).then(number)
    return number.log1p() if log1p else number
