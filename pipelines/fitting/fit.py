"""Everything learnt from the train split before training: vocabularies, scales, the spec."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from pipelines.dataset.feature_roles import (
    BucketizedRole,
    CategoricalRole,
    CodeRole,
    CrossedRole,
    FeatureRole,
    HashedRole,
    NumericRole,
    VectorRole,
)
from pipelines.dataset.roles import Dataset
from pipelines.fitting.growth import Growth, grow_spec
from pipelines.fitting.scales import fit_numbers
from pipelines.fitting.targets import fit_tasks
from pipelines.fitting.vocabulary import fit_vocabulary, vocabulary_file, write_vocabulary
from pipelines.prepare import Prepared, prepared_files
from recsys_moe.files import sha256_file
from recsys_moe.spec import (
    FIRST_OOV,
    Bucketized,
    Categorical,
    Column,
    Crossed,
    Feature,
    FeatureSpec,
    Numeric,
    Table,
    Vector,
)


def fit(
    dataset: Dataset,
    columns: dict[str, Column],
    prepared: Prepared,
    output: Path,
    old: Growth | None = None,
) -> FeatureSpec:
    """Fit on `prepared/train`; write `vocab/` and `feature_spec.json` and return the spec.

    No row of another split is read, so none can leave a trace in what is written. What `old` had
    fitted stays as it was.
    """
    train = prepared_files(output, "train")
    numbers = [f for f in dataset.features if isinstance(f, NumericRole | BucketizedRole)]
    fitted = fit_numbers(numbers, train, columns.values())
    spec = FeatureSpec(
        dataset=dataset.name,
        columns=tuple(columns[name] for name in dataset.input_columns),
        tables=tuple(_tables(dataset, columns, fitted, train, output, old)),
        features=tuple(_features(dataset.features, fitted)),
        tasks=fit_tasks(dataset, output),
        keys=dataset.keys,
        user=dataset.user,
        row_weight=dataset.row_weight,
        train_rows=prepared.rows["train"],
        train_window=prepared.train_window,
    )
    if old is not None:
        spec = grow_spec(spec, old.spec)
    spec.save(output / "feature_spec.json")
    return spec


def _tables(
    dataset: Dataset,
    columns: dict[str, Column],
    fitted: Mapping[str, Numeric | Bucketized],
    train: Path,
    output: Path,
    old: Growth | None,
) -> Iterator[Table]:
    """Yield each table once, fitted on the union of the columns that share it."""
    groups: dict[str, list[CodeRole]] = {}
    for feature in dataset.features:
        if not isinstance(feature, NumericRole | VectorRole):
            groups.setdefault(feature.table, []).append(feature)
    rows = pl.scan_parquet(train / "*.parquet")
    for name, group in groups.items():
        first = group[0]
        buckets = fitted.get(first.name)
        if isinstance(buckets, Bucketized):
            yield Table(name=name, num_codes=FIRST_OOV + len(buckets.edges) + 1, num_oov=0)
        elif isinstance(first, HashedRole | CrossedRole):
            num_codes = FIRST_OOV + first.num_buckets
            yield Table(name=name, num_codes=num_codes, num_oov=first.num_buckets)
        elif isinstance(first, CategoricalRole):
            vocabulary = fit_vocabulary(
                rows,
                _counted(dataset, group, columns),
                min_frequency=first.min_frequency,
                max_size=first.max_size,
                first_code=FIRST_OOV + first.num_oov,
                old=None if old is None else old.values.get(name),
            )
            path = vocabulary_file(name)
            write_vocabulary(output / path, vocabulary)
            yield Table(
                name=name,
                num_codes=FIRST_OOV + first.num_oov + len(vocabulary),
                num_oov=first.num_oov,
                vocabulary=path,
                sha256=sha256_file(output / path),
            )


def _counted(dataset: Dataset, group: list[CodeRole], columns: dict[str, Column]) -> list[Column]:
    """Return the columns whose values a table counts.

    A history repeats each event many times over: it counts only where it has its table alone.
    """
    names = list(dict.fromkeys(name for role in group for name in role.columns))
    shown = [name for name in names if name not in dataset.past_columns]
    return [columns[name] for name in shown or names]


def _features(
    roles: tuple[FeatureRole, ...], fitted: Mapping[str, Numeric | Bucketized]
) -> Iterator[Feature]:
    for role in roles:
        if isinstance(role, NumericRole | BucketizedRole):
            yield fitted[role.name]
        elif isinstance(role, VectorRole):
            yield Vector(
                name=role.name,
                column=role.column,
                dim=role.dim,
                normalize=role.normalize,
                missing_flag=role.missing_flag,
            )
        elif isinstance(role, CrossedRole):
            yield Crossed(name=role.name, columns=role.columns, table=role.table)
        else:
            yield Categorical(
                name=role.name,
                column=role.column,
                table=role.table,
                max_len=role.max_len,
                keep=role.keep,
            )
