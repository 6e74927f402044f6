"""From prepared rows to codes and numbers, as the spec says; the exported graph does the same.

Shapes: B rows of a batch, L slots of a feature, S slots of all, K numbers of all features,
N list elements of a batch.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.encoding.expressions import with_expressions
from pipelines.encoding.hashes import murmur32, text_of
from pipelines.encoding.vectors import vector_numbers
from pipelines.fitting.vocabulary import Vocabulary
from recsys_moe.feature import NULL_PART, PART_SEPARATOR
from recsys_moe.spec import (
    FIRST_OOV,
    MISSING_CODE,
    PAD,
    Bucketized,
    Categorical,
    Column,
    Crossed,
    FeatureSpec,
    Numeric,
    Table,
    Vector,
)


def codes(
    batch: pl.DataFrame, spec: FeatureSpec, vocabularies: Mapping[str, Vocabulary]
) -> npt.NDArray[np.int32]:
    """Return the codes of a batch, (B, S)."""
    codes_BS = np.full((len(batch), spec.num_slots), PAD, np.int32)
    batch = with_expressions(batch, spec.code_features, spec.columns)
    first = 0
    for feature in spec.code_features:
        slots = slice(first, first + feature.num_slots)
        table = spec.table(feature.table)
        if isinstance(feature, Bucketized):
            codes_BS[:, first] = bucket_codes(batch, feature)
        elif isinstance(feature, Crossed):
            codes_BS[:, first] = crossed_codes(batch, spec, feature)
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
    """Return the codes of the first or last elements of each list, pad on the right, (B, L)."""
    num_slots = feature.num_slots
    cells = batch[feature.column].list
    lists = cells.tail(num_slots) if feature.keep == "last" else cells.head(num_slots)
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
        text = text_of(pl.col("value"), column.type)
        hashes = others.to_frame("value").select(murmur32(text)).to_series()
        codes_N[unlisted_N] = FIRST_OOV + hashes.to_numpy() % table.num_oov
    return codes_N.astype(np.int32)


def crossed_codes(
    batch: pl.DataFrame, spec: FeatureSpec, feature: Crossed
) -> npt.NDArray[np.int32]:
    """Return the codes of several columns' values taken together, (B,)."""
    parts = [text_of(pl.col(name), spec.column(name).type) for name in feature.columns]
    text = pl.concat_str([part.fill_null(NULL_PART) for part in parts], separator=PART_SEPARATOR)
    bucket = murmur32(text) % spec.table(feature.table).num_oov + FIRST_OOV
    known = pl.any_horizontal(part.is_not_null() for part in parts)
    code = pl.when(known).then(bucket).otherwise(MISSING_CODE)
    return batch.select(code.cast(pl.Int32)).to_series().to_numpy()


def bucket_codes(batch: pl.DataFrame, feature: Bucketized) -> npt.NDArray[np.int32]:
    """Return 2, 3, … for the right-closed interval that each number lies in, (B,)."""
    numbers_B = batch.select(bucketed_number(feature).fill_null(np.nan)).to_series().to_numpy()
    codes_B = FIRST_OOV + np.searchsorted(np.asarray(feature.edges), numbers_B, side="left")
    return np.where(np.isnan(numbers_B), MISSING_CODE, codes_B).astype(np.int32)


def bucketed_number(feature: Bucketized) -> pl.Expr:
    """Return a bucketised feature's number in float64, null where it is missing."""
    number = source_number(feature)
    return pl.when(number.is_not_nan() if feature.allow_inf else number.is_finite()).then(number)


def numbers(batch: pl.DataFrame, spec: FeatureSpec) -> npt.NDArray[np.float32]:
    """Return the scaled numbers of a batch, each followed by its missing flag if any, (B, K)."""
    numbers_BK = np.zeros((len(batch), spec.num_numbers), np.float32)
    batch = with_expressions(batch, spec.numeric_features, spec.columns)
    first = 0
    for feature in spec.numeric_features:
        places = slice(first, first + feature.num_numbers)
        first = places.stop
        if isinstance(feature, Vector):
            numbers_BK[:, places] = vector_numbers(batch[feature.column], feature)
        else:
            numbers_BK[:, places] = batch.select(_scaled(feature)).to_numpy()
    _check_finite(numbers_BK, spec)
    return numbers_BK


def _check_finite(numbers_BK: npt.NDArray[np.float32], spec: FeatureSpec) -> None:
    """Stop at a number that no feature may give, whatever its columns hold."""
    bad_K = (~np.isfinite(numbers_BK)).sum(axis=0)
    if bad_K.any():
        names = [f.name for f in spec.numeric_features for _ in range(f.num_numbers)]
        worst = int(bad_K.argmax())
        raise RuntimeError(f"feature {names[worst]!r}: {bad_K[worst]} numbers that are not finite")


def _scaled(feature: Numeric) -> list[pl.Expr]:
    number = number_of(feature)
    scaled = ((number - feature.center) * feature.scale).clip(-feature.clip, feature.clip)
    value = scaled.fill_null(feature.fill).cast(pl.Float32).alias(f"{feature.name}\x1fvalue")
    flag = number.is_null().cast(pl.Float32).alias(f"{feature.name}\x1fmissing")
    return [value, flag] if feature.missing_flag else [value]


def number_of(feature: Numeric) -> pl.Expr:
    """Return a numeric feature's transformed number, not yet scaled; null where it is missing."""
    number = known_number(feature)
    if feature.transform == "log1p":
        return number.log1p()
    return number.sqrt() if feature.transform == "sqrt" else number


def known_number(feature: Numeric) -> pl.Expr:
    """Return a numeric feature's number as it came; null where it is missing."""
    number = source_number(feature)
    return pl.when(number.is_finite() & number.is_between(*feature.bounds)).then(number)


def source_number(feature: Numeric | Bucketized) -> pl.Expr:
    """Return what a feature of numbers reads, in float64; `with_expressions` has added its own."""
    return pl.col(feature.source).cast(pl.Float64)
