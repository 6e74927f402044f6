"""What features must not say of their tables, and the types of column that suit each kind."""

from pipelines.dataset.checked import Faults
from pipelines.dataset.feature_roles import (
    BucketizedRole,
    CodeRole,
    CrossedRole,
    NumericRole,
    VectorRole,
    note_expression,
)
from pipelines.dataset.roles import Dataset
from recsys_moe.expression import ExpressionError
from recsys_moe.expression_types import resolve
from recsys_moe.spec import Column


def check_features(dataset: Dataset, faults: Faults) -> None:
    """Note tables whose features disagree and columns that are lists here and scalars there."""
    first: dict[str, CodeRole] = {}
    lengths: dict[str, str] = {}
    for feature in dataset.features:
        if isinstance(feature, NumericRole | VectorRole) or not feature.table:
            continue
        known = first.setdefault(feature.table, feature)
        if known.settings != feature.settings:
            faults.note(
                f"{feature.path}.table",
                wanted=f"the settings of {known.name!r}, which has the table {known.table!r} too",
                got=f"{feature.settings}, not {known.settings}",
            )
        if isinstance(feature, BucketizedRole):
            continue
        is_list, path = "a scalar", feature.path_of_column
        if not isinstance(feature, CrossedRole):
            is_list, path = "a list" if feature.max_len else is_list, f"{feature.path}.max_len"
        for column in feature.columns:
            if lengths.setdefault(column, is_list) != is_list:
                wanted = f"{column!r} as {lengths[column]}, as before"
                faults.note(path, wanted=wanted, got=is_list)


def check_feature_columns(dataset: Dataset, columns: dict[str, Column], faults: Faults) -> None:
    """Note every feature whose column has a type that its kind cannot take."""
    types: dict[str, str] = {}
    for feature in dataset.features:
        if isinstance(feature, CrossedRole):
            _check_parts(feature, columns, faults)
            continue
        if isinstance(feature, NumericRole | BucketizedRole) and feature.expression is not None:
            _check_expression(feature.expression, feature, columns, faults)
            continue
        column = columns.get(feature.column or "")
        if column is None:
            continue
        path = f"{feature.path}.column"
        if isinstance(feature, VectorRole):
            if column.dim is None:
                holds = f"lists of {column.type}" if column.is_list else column.type
                got = f"{column.name!r}, which holds {holds}"
                faults.note(path, wanted="a column of lists of numbers", got=got)
            continue
        if isinstance(feature, (NumericRole, BucketizedRole)):
            if column.is_list or column.dim or column.type == "string":
                holds = "vectors" if column.dim else "lists" if column.is_list else "strings"
                got = f"{column.name!r}, which holds {holds}"
                faults.note(path, wanted="a column of numbers", got=got)
            continue
        if column.type == "float32":
            got = f"{column.name!r}, which holds floats"
            faults.note(path, wanted="integers or strings (bucketized takes floats)", got=got)
        if column.is_list != (feature.max_len is not None):
            wanted = "a max_len" if column.is_list else "no max_len"
            got = f"{column.name!r}, which holds {'lists' if column.is_list else 'single values'}"
            faults.note(f"{feature.path}.max_len", wanted=wanted, got=got)
        if types.setdefault(feature.table, column.type) != column.type:
            wanted = f"{types[feature.table]}, as the other columns of table {feature.table!r}"
            got = f"{column.name!r} of type {column.type}"
            faults.note(path, wanted=wanted, got=got)


def _check_expression(
    text: str, feature: NumericRole | BucketizedRole, columns: dict[str, Column], faults: Faults
) -> None:
    """Note what an expression does with columns that their types do not allow."""
    if all(name in columns for name in feature.columns):  # else that is noted already
        try:
            resolve(text, columns.values())
        except ExpressionError as error:
            note_expression(feature.path, error, faults)


def _check_parts(feature: CrossedRole, columns: dict[str, Column], faults: Faults) -> None:
    """Note the columns of a cross that are neither strings nor integers, one value a row."""
    for name in feature.columns:
        column = columns.get(name)
        if column is not None and (column.is_list or column.dim or column.type == "float32"):
            holds = "vectors" if column.dim else "lists" if column.is_list else "floats"
            wanted = "columns of single integers or strings"
            faults.note(feature.path_of_column, wanted=wanted, got=f"{name!r}, which holds {holds}")
