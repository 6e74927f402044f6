"""Scales, stand-ins and edges are those of the train rows, by their definitions in plain Python."""

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.dataset.checked import Entry, Faults
from pipelines.dataset.feature_roles import BucketizedRole, NumericRole, read_features
from pipelines.fitting.scales import fit_numbers
from recsys_moe.spec import Bucketized, Numeric

ROWS = 20_000
draw = np.random.default_rng(3)
ODD = [None, math.nan, math.inf, -math.inf, -1.0, -0.0, 0.0, 0.1, 3.0e38]
PRICES = [*draw.gamma(0.5, 9.0, ROWS).round(2).tolist(), *ODD * 20]
STOCK = [*draw.geometric(0.2, ROWS).tolist(), *[None, -5, 0, 2**30, -(2**30)] * 36]
FRAME = pl.DataFrame(
    {
        "price": pl.Series(PRICES, dtype=pl.Float64, strict=False).cast(pl.Float32),
        "stock": pl.Series(STOCK, dtype=pl.Int64),
        "same": pl.Series([0.1] * len(PRICES), dtype=pl.Float32),
        "nothing": pl.Series([None] * len(PRICES), dtype=pl.Float32),
    }
)
TRANSFORMS = {"identity": float, "log1p": math.log1p, "sqrt": math.sqrt}


def role_of(**value: Any) -> NumericRole | BucketizedRole:
    faults = Faults("test")
    (role,) = read_features(Entry({"name": "x", **value}, "features[0]", faults))
    faults.raise_any()
    assert isinstance(role, NumericRole | BucketizedRole)
    return role


@pytest.fixture
def fitted(tmp_path: Path) -> Callable[..., Any]:
    FRAME.write_parquet(tmp_path / "part-00000.parquet", row_group_size=997)
    return lambda **value: fit_numbers([role_of(**value)], tmp_path)["x"]


def known(column: str, transform: str, low: float, high: float) -> list[float]:
    least = -math.inf if transform == "identity" else 0.0
    values = [x for x in FRAME[column].to_list() if x is not None and math.isfinite(x)]
    return [TRANSFORMS[transform](x) for x in values if max(low, least) <= x <= high]


@pytest.mark.parametrize("column", ["price", "stock"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("domain", [(None, None), (0.5, 40.0), (0, None), (None, 3)])
@pytest.mark.parametrize("missing", ["zero", "mean", "median", 2.5])
@pytest.mark.parametrize("scale", ["zscore", "minmax", "none"])
def test_a_scale_is_that_of_the_known_numbers(
    fitted: Callable[..., Any], column: str, transform: str, domain: Any, missing: Any, scale: str
) -> None:
    numbers = known(column, transform, *(domain[0] or -math.inf, domain[1] or math.inf))
    if domain[0] == 0:
        numbers = known(column, transform, 0.0, math.inf)

    feature = fitted(
        kind="numeric",
        column=column,
        transform=transform,
        domain=list(domain),
        missing=missing,
        scale=scale,
        clip=5,
    )

    assert isinstance(feature, Numeric)
    mean = math.fsum(numbers) / len(numbers)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / len(numbers))
    center, factor = {
        "zscore": (mean, 1 / deviation),
        "minmax": (min(numbers), 1 / (max(numbers) - min(numbers))),
        "none": (0.0, 1.0),
    }[scale]
    near = {"rel": 5e-9, "abs": 1e-12}
    assert feature.center == pytest.approx(center, **near)
    assert feature.scale == pytest.approx(factor, **near)
    stand_in = {
        "mean": mean,
        "median": statistics.median(numbers),
        2.5: TRANSFORMS[transform](2.5),
        "zero": center,
    }[missing]
    wanted = 0.0 if missing == "zero" else min(max((stand_in - center) * factor, -5), 5)
    assert feature.fill == pytest.approx(wanted, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("column", ["same", "nothing"])
@pytest.mark.parametrize("scale", ["zscore", "minmax"])
@pytest.mark.parametrize("missing", ["zero", "mean", "median", 4])
def test_a_constant_or_empty_column_gives_zero(
    fitted: Callable[..., Any], column: str, scale: str, missing: Any
) -> None:
    feature = fitted(kind="numeric", column=column, scale=scale, missing=missing)

    assert (feature.scale, feature.fill) == (0.0, 0.0)


@pytest.mark.parametrize("column", ["price", "stock"])
@pytest.mark.parametrize("num_buckets", [2, 3, 10, 1024])
def test_fitted_buckets_hold_equal_shares_of_the_train_numbers(
    fitted: Callable[..., Any], column: str, num_buckets: int
) -> None:
    numbers = sorted(known(column, "identity", -math.inf, math.inf))
    ends = [math.ceil(i * len(numbers) / num_buckets) - 1 for i in range(1, num_buckets)]
    wanted = sorted({float(np.float32(numbers[end])) for end in ends})

    feature = fitted(kind="bucketized", column=column, num_buckets=num_buckets)

    assert isinstance(feature, Bucketized)
    assert list(feature.edges) == [edge for edge in wanted if edge < numbers[-1]]


def test_without_ties_each_fitted_bucket_holds_the_same_number(tmp_path: Path) -> None:
    numbers = pl.Series("x", np.random.default_rng(1).permutation(1200)).cast(pl.Int64)
    numbers.to_frame().write_parquet(tmp_path / "a.parquet")

    role = role_of(kind="bucketized", column="x", num_buckets=12)
    feature = fit_numbers([role], tmp_path)["x"]

    assert isinstance(feature, Bucketized)
    buckets = np.searchsorted(feature.edges, numbers.to_numpy(), side="left")
    assert np.bincount(buckets).tolist() == [100] * 12


@pytest.mark.parametrize("column", ["same", "nothing"])
def test_a_column_of_one_value_has_one_bucket(fitted: Callable[..., Any], column: str) -> None:
    assert fitted(kind="bucketized", column=column, num_buckets=8).edges == ()


def test_infinite_numbers_do_not_move_the_edges(fitted: Callable[..., Any]) -> None:
    one = fitted(kind="bucketized", column="price", num_buckets=7)
    other = fitted(kind="bucketized", column="price", num_buckets=7, allow_inf=True)

    assert one.edges == other.edges


FIT = """
import json, sys
from dataclasses import asdict
from pathlib import Path
sys.path.insert(0, {here!r})
from test_scales import role_of
from pipelines.fitting.scales import fit_numbers
roles = [role_of(**{{**value, "name": str(i)}}) for i, value in enumerate({values!r})]
print(json.dumps([asdict(f) for f in fit_numbers(roles, Path(sys.argv[1])).values()]))
"""
VALUES = [
    {"kind": "numeric", "column": "price", "log1p": True, "missing": "mean"},
    {"kind": "numeric", "column": "stock", "transform": "sqrt", "missing": "median"},
    {"kind": "numeric", "column": "price", "domain": [0, 100], "scale": "minmax"},
    {"kind": "bucketized", "column": "price", "num_buckets": 50},
    {"kind": "bucketized", "column": "stock", "num_buckets": 5},
]


def test_threads_and_row_groups_leave_no_trace(tmp_path: Path) -> None:
    code = FIT.format(here=str(Path(__file__).parent), values=VALUES)
    rows = pl.concat([FRAME] * 8)
    fits = []
    for threads, row_group_size in ((1, 333), (4, 100_000)):
        folder = tmp_path / str(threads)
        folder.mkdir()
        rows.write_parquet(folder / "part-00000.parquet", row_group_size=row_group_size)
        run = subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            env={**os.environ, "POLARS_MAX_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=True,
        )
        fits.append(json.loads(run.stdout))

    assert fits[0] == fits[1]
    roles = [role_of(**{**value, "name": str(i)}) for i, value in enumerate(VALUES)]
    here = [asdict(feature) for feature in fit_numbers(roles, tmp_path / "1").values()]
    assert json.loads(json.dumps(here)) == fits[0]
