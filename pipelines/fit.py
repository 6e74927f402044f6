"""Everything learnt from the train split before training: vocabularies, scales, the spec."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines.batches import batches
from pipelines.encode import number_of
from pipelines.prepare import Prepared, prepared_files
from pipelines.roles import (
    BucketizedRole,
    CategoricalRole,
    Dataset,
    FeatureRole,
    HashedRole,
    NumericRole,
)
from pipelines.vocabulary import fit_vocabulary, vocabulary_file, write_vocabulary
from recsys_moe.files import sha256_file
from recsys_moe.spec import (
    FIRST_OOV,
    Bucketized,
    Categorical,
    Column,
    Feature,
    FeatureSpec,
    Numeric,
    Table,
    Task,
)

_DIGITS = 9


@dataclass(slots=True)
class Moments:
    """Count, mean and sum of squared deviations of numbers that come batch by batch."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: pl.Series) -> None:
        """Take in more numbers (Chan, Golub and LeVeque's pairwise update)."""
        numbers = values.drop_nulls().to_numpy()
        if not len(numbers):
            return
        mean = float(numbers.mean())
        squares = float(np.square(numbers - mean).sum())
        apart, total = mean - self.mean, self.count + len(numbers)
        self.squares += squares + apart * apart * self.count * len(numbers) / total
        self.mean += apart * len(numbers) / total
        self.count = total

    def scaling(self) -> tuple[float, float]:
        """Return mean and 1 / standard deviation, 0 for a constant, to nine digits.

        What rounding leaves of the deviations of equal numbers does not count as deviation.
        """
        if not self.count:
            return 0.0, 0.0
        deviation = math.sqrt(self.squares / self.count)
        constant = deviation <= 1e-12 * abs(self.mean)
        return _rounded(self.mean), 0.0 if constant else _rounded(1.0 / deviation)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS - 1}e}")


def fit(
    dataset: Dataset, columns: dict[str, Column], prepared: Prepared, output: Path
) -> FeatureSpec:
    """Fit on `prepared/train`; write `vocab/` and `feature_spec.json` and return the spec.

    No row of another split is read, so none can leave a trace in what is written.
    """
    train = prepared_files(output, "train")
    spec = FeatureSpec(
        dataset=dataset.name,
        columns=tuple(columns[name] for name in dataset.input_columns),
        tables=tuple(_tables(dataset, columns, train, output)),
        features=tuple(_fitted_features(dataset.features, train)),
        tasks=tuple(
            Task(name=task.name, label=task.name, space=task.space, weight=task.weight)
            for task in dataset.tasks
        ),
        keys=dataset.keys,
        user=dataset.user,
        row_weight=dataset.row_weight,
        train_rows=prepared.rows["train"],
        train_window=prepared.train_window,
    )
    spec.save(output / "feature_spec.json")
    return spec


def _tables(
    dataset: Dataset, columns: dict[str, Column], train: Path, output: Path
) -> Iterator[Table]:
    """Yield each table once, fitted on the union of the columns that share it."""
    groups: dict[str, list[CategoricalRole | HashedRole | BucketizedRole]] = {}
    for feature in dataset.features:
        if not isinstance(feature, NumericRole):
            groups.setdefault(feature.table, []).append(feature)
    rows = pl.scan_parquet(train / "*.parquet")
    for name, group in groups.items():
        first = group[0]
        if isinstance(first, BucketizedRole):
            yield Table(name=name, num_codes=FIRST_OOV + len(first.edges) + 1, num_oov=0)
        elif isinstance(first, HashedRole):
            num_codes = FIRST_OOV + first.num_buckets
            yield Table(name=name, num_codes=num_codes, num_oov=first.num_buckets)
        else:
            vocabulary = fit_vocabulary(
                rows,
                [columns[name] for name in dict.fromkeys(feature.column for feature in group)],
                min_frequency=first.min_frequency,
                max_size=first.max_size,
                first_code=FIRST_OOV + first.num_oov,
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


def _fitted_features(features: tuple[FeatureRole, ...], train: Path) -> Iterator[Feature]:
    scalings = _scalings([f for f in features if isinstance(f, NumericRole)], train)
    for feature in features:
        common: dict[str, Any] = {"name": feature.name, "column": feature.column}
        if isinstance(feature, NumericRole):
            mean, scale = scalings[feature.name]
            yield Numeric(
                **common,
                log1p=feature.log1p,
                mean=mean,
                scale=scale,
                clip=feature.clip,
                missing_flag=feature.missing_flag,
            )
        elif isinstance(feature, BucketizedRole):
            yield Bucketized(**common, table=feature.table, edges=feature.edges)
        else:
            yield Categorical(**common, table=feature.table, max_len=feature.max_len)


def _scalings(features: list[NumericRole], train: Path) -> dict[str, tuple[float, float]]:
    """Return mean and scale of each numeric feature over its finite train values.

    Batches have the same rows in the same order whatever the number of threads, so the sums do too.
    """
    moments = {feature.name: Moments() for feature in features}
    if features:
        for batch in batches(train, [feature.column for feature in features]):
            values = batch.select(number_of(f.column, f.log1p).alias(f.name) for f in features)
            for name, series in zip(moments, values, strict=True):
                moments[name].add(series)
    return {name: moment.scaling() for name, moment in moments.items()}
