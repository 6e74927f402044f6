"""Pre-computed embedding vectors: which columns hold them, which rows fit, and their numbers.

In frames a vector is a list of float32. One that is null, or has an element that is null, NaN or
infinite, is missing as a whole; one of another length has no place and its row is quarantined.

Shapes: B rows of a batch, D numbers of a vector, K numbers of a feature.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.dataset.checked import Faults
from pipelines.dataset.feature_roles import FeatureRole, VectorRole
from pipelines.logs.logs import LogFile
from pipelines.rows.row_rules import Rule
from recsys_moe.spec import Column, Vector

_LEAST_LENGTH = 1e-12


def vector_columns(
    features: Iterable[FeatureRole],
    columns: dict[str, Column],
    logs: Sequence[LogFile],
    faults: Faults,
) -> dict[str, Column]:
    """Return the columns with those that vector features read as vectors.

    What is not a list of numbers stays as it is. A column whose type, or another feature, fixes
    another length than the feature's is noted.

    Args:
        features: The features of the dataset file.
        columns: The columns as their files' types read: a vector is a list there.
        logs: The files.
        faults: Where to note what is wrong.
    """
    found = dict(columns)
    for feature in features:
        if not isinstance(feature, VectorRole) or feature.column not in columns:
            continue
        column = columns[feature.column]
        kinds = [log.schema.get(column.name, pl.Null()) for log in logs]
        empty = all(kind == pl.Null for kind in kinds)
        if not empty and (not column.is_list or column.type == "string"):
            continue
        sizes = {kind.size for kind in kinds if isinstance(kind, pl.Array)}
        sizes |= {found[column.name].dim or feature.dim}
        for size in sorted(sizes - {feature.dim}):
            wanted = f"the length of the vectors in {column.name!r}, {size}"
            faults.note(f"{feature.path}.dim", wanted=wanted, got=str(feature.dim))
        found[column.name] = Column(name=column.name, type="float32", dim=feature.dim)
    return found


def vector_rule(column: Column) -> Rule:
    """Return the rule that a vector has its column's length."""
    whole = pl.col(column.name).list.len() == column.dim
    return Rule(f"vector {column.name}: wanted {column.dim} numbers", whole)


def vector_numbers(values: pl.Series, feature: Vector) -> npt.NDArray[np.float32]:
    """Return the numbers of a batch of vectors, the missing flag last if there is one, (B, K)."""
    vectors_BD, whole_B = whole_vectors(values, feature.dim)
    numbers_BK = np.empty((len(values), feature.num_numbers), np.float32)
    numbers_BK[:, feature.dim :] = ~whole_B[:, None]
    if feature.normalize == "none":
        numbers_BK[:, : feature.dim] = vectors_BD
        return numbers_BK
    lengths_B = np.sqrt(np.einsum("bd,bd->b", vectors_BD, vectors_BD, dtype=np.float64))
    divisors_B1 = np.maximum(lengths_B, _LEAST_LENGTH)[:, None]
    out_BD = numbers_BK[:, : feature.dim]
    np.divide(vectors_BD, divisors_B1, out=out_BD, casting="same_kind")  # in float64
    return numbers_BK


def whole_vectors(
    values: pl.Series, dim: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return vectors, zeros where one is missing, (B, D), and which are not missing, (B,)."""
    vectors_BD = np.full((len(values), dim), np.nan, np.float32)
    elements = values.drop_nulls().explode().cast(pl.Float32).fill_null(np.nan)
    vectors_BD[values.is_not_null().to_numpy()] = elements.to_numpy().reshape(-1, dim)
    whole_B: npt.NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(vectors_BD), axis=1)
    vectors_BD[~whole_B] = 0
    return vectors_BD, whole_B
