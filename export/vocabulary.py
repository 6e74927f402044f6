"""The fitted vocabularies of a run, read and held against the feature spec."""

from pathlib import Path

import numpy as np
import polars as pl

from recsys_moe.errors import SpecError
from recsys_moe.files import sha256_file
from recsys_moe.spec import (
    INT64_MISSING,
    Bucketized,
    Categorical,
    Crossed,
    FeatureSpec,
    Numeric,
    Table,
    Vector,
)


def read_vocabulary(folder: Path, table: Table) -> pl.Series:
    """Return the values of a table's vocabulary, the one with code `first_value` first.

    Args:
        folder: Where `feature_spec.json` lies; the vocabulary's path is relative to it.
        table: A table of the spec; one without a vocabulary has no values.

    Raises:
        SpecError: The file is not there, not the one the spec was written with, not ordered by
            code, of another length than the spec says, or lists a missing marker.
    """
    what = f"table {table.name!r}, vocabulary"
    if table.vocabulary is None:
        return pl.Series("value", [], dtype=pl.String)
    path = folder / table.vocabulary
    if not path.is_file():
        raise SpecError(what, wanted=f"the file {path}", got="none")
    if table.sha256 is not None and sha256_file(path) != table.sha256:
        raise SpecError(what, wanted=f"sha256 {table.sha256[:16]}…", got="another content")
    frame = pl.read_parquet(path)
    values, codes = frame["value"], frame["code"].to_numpy()
    if values.dtype not in (pl.String, pl.Int64):
        raise SpecError(what, wanted="strings or int64", got=str(values.dtype))
    expected = np.arange(table.first_value, table.num_codes)
    if not np.array_equal(codes, expected):
        raise SpecError(
            what,
            wanted=f"the codes {table.first_value} to {table.num_codes - 1} in order",
            got=f"{len(codes)} rows of other codes",
        )
    marker = "" if values.dtype == pl.String else INT64_MISSING
    if values.null_count() or (values == marker).any():
        raise SpecError(what, wanted="no missing marker among its values", got=repr(marker))
    return values


def check_graphable(spec: FeatureSpec) -> None:
    """Refuse a spec whose features or names have no place in a graph.

    Raises:
        SpecError: Said in one line, with the feature or column.
    """
    for feature in spec.features:
        what = f"feature {feature.name!r}"
        if isinstance(feature, Crossed):
            _check_table(spec.table(feature.table))
            for column in map(spec.column, feature.columns):
                if column.is_list or column.dim or column.type == "float32":
                    wanted = "string or int64 columns of single values"
                    raise SpecError(what, wanted=wanted, got=str(column))
            continue
        if isinstance(feature, Numeric | Bucketized) and feature.expression is not None:
            continue  # its nodes are held against the columns when they are made
        column = spec.column(feature.columns[0])
        if isinstance(feature, Categorical):
            _check_table(spec.table(feature.table))
            if column.type == "float32":
                raise SpecError(what, wanted="a string or int64 column", got=column.type)
            if column.is_list != (feature.max_len is not None):
                raise SpecError(what, wanted="max_len for a list and only there", got=str(column))
        elif isinstance(feature, Vector):
            if column.dim != feature.dim:
                wanted = f"a column of vectors of {feature.dim}"
                raise SpecError(what, wanted=wanted, got=str(column))
        elif column.is_list or column.dim or column.type == "string":
            raise SpecError(what, wanted="a column of numbers", got=str(column))
    names: set[str] = {"codes", "numbers", *spec.predictions}
    for column in spec.columns:
        inputs = [f"{column.name}_ids", f"{column.name}_len"] if column.is_list else [column.name]
        for name in inputs:
            if not name or name in names or name.startswith(("p_", "logit_")) or "::" in name:
                raise SpecError(
                    f"column {column.name!r}",
                    wanted="a name of its own, not codes, numbers, p_…, y_…, logit_… or …::…",
                    got=repr(name),
                )
            names.add(name)


def _check_table(table: Table) -> None:
    if table.num_oov < 1:
        raise SpecError(
            f"table {table.name!r}, num_oov", wanted="at least 1", got=str(table.num_oov)
        )
    if table.vocabulary is None and table.num_codes != table.first_value:
        raise SpecError(
            f"table {table.name!r}, num_codes",
            wanted=f"{table.first_value} for a table without a vocabulary",
            got=str(table.num_codes),
        )
