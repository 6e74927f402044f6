"""The funnel's features are those that DuckDB computes from the same logs, row by row.

`benchmarks/funnel_sql.py` does the whole job in SQL; aggregates are added up here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
import yaml

from benchmarks import funnel_sql
from pipelines import build
from pipelines.events import buckets
from pipelines.simulated import funnel
from recsys_moe.paths import CONF_DIR
from recsys_moe.spec import Categorical, FeatureSpec

ROWS, SEED = 60_000, 3
SPLITS = ("train", "valid", "test")
PRIOR_WEIGHT = 20.0
AGGREGATES: list[dict[str, Any]] = [
    {"name": "item_rate", "of": "item_id", "kind": "rate", "target": "click",
     "prior_weight": PRIOR_WEIGHT, "window_days": 3},
    {"name": "item_rate_daily", "of": "item_id", "kind": "rate", "target": "click",
     "prior_weight": PRIOR_WEIGHT, "lag_days": 1, "refresh": "daily"},
    {"name": "user_shown", "of": "user_id", "kind": "count", "window_days": 2,
     "refresh": "daily"},
    {"name": "item_sold", "of": "item_id", "kind": "sum", "target": "conversion",
     "refresh": "daily"},
    {"name": "brand_price", "of": "brand", "kind": "mean", "target": "price"},
]  # fmt: skip


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oracle") / "logs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(funnel, "CHUNK_ROWS", 25_000)
        funnel.simulate(folder, rows=ROWS, seed=SEED, correlation=0.5)
    return folder


@pytest.fixture(scope="module")
def built(logs: Path) -> Path:
    """Build the features from several files, in several buckets."""
    value = yaml.safe_load((CONF_DIR / "dataset" / "funnel.yaml").read_text())
    for name in ("rows", "seed", "correlation"):
        value.pop(name)
    value["source"] = {"format": "parquet", "until": "2026-01-15"}
    value["source"] |= {name: f"{logs}/{name}/*.parquet" for name in funnel_sql.LOGS}
    names = [aggregate["name"] for aggregate in AGGREGATES]
    value["aggregates"] = AGGREGATES
    value["features"].append({"kind": "numeric", "columns": names})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "ROWS_PER_BUCKET", 20_000)
        build.build(value, folder=logs, output=logs.parent / "out")
    return logs.parent / "out"


@pytest.fixture(scope="module")
def sql(logs: Path) -> Path:
    output = logs.parent / "sql"
    funnel_sql.build(logs, output)
    return output


@pytest.fixture(scope="module")
def prepared(built: Path) -> pl.DataFrame:
    parts = [
        pl.read_parquet(built / "prepared" / split).with_columns(split=pl.lit(split))
        for split in SPLITS
    ]
    return pl.concat(parts).sort("impression_id")


@pytest.fixture(scope="module")
def wanted(sql: Path) -> pl.DataFrame:
    rows = pl.read_parquet(sql / "split=*/*.parquet", hive_partitioning=True)
    return rows.sort("impression_id")


def test_rows_labels_splits_and_histories_are_those_of_duckdb(
    prepared: pl.DataFrame, wanted: pl.DataFrame
) -> None:
    columns = [name for name in prepared.columns if name in wanted.columns]
    assert {"click", "conversion", "split", "clicked_item_id", "topics", "price"} < set(columns)
    assert len(prepared) == ROWS
    for column in columns:
        right = wanted[column].cast(prepared[column].dtype)
        assert prepared[column].equals(right, null_equal=True), column
    assert prepared["split"].value_counts(sort=True)["count"].to_list() == [48_000, 6_000, 6_000]
    lengths = prepared["clicked_item_id"].list.len()
    assert (lengths == 0).sum() > 1_000
    assert (lengths == funnel_sql.LAST).sum() > 1_000


def test_vocabularies_are_those_of_duckdb(built: Path, sql: Path) -> None:
    tables = [*funnel_sql.SINGLE, "category", *funnel_sql.LISTS.values()]
    files = sorted(path.name for path in (built / "vocab").iterdir())
    assert files == sorted(f"{table}.parquet" for table in tables)
    for table in tables:
        found = pl.read_parquet(built / "vocab" / f"{table}.parquet")
        right = pl.read_parquet(sql / f"vocabulary_{table}.parquet")
        assert found.equals(right.cast(dict(found.schema))), table


def test_codes_and_numbers_are_those_of_duckdb(built: Path, wanted: pl.DataFrame) -> None:
    spec = FeatureSpec.load(built / "feature_spec.json")
    for split in SPLITS:
        rows = wanted.filter(split=split)
        codes = np.load(built / "tensors" / split / "codes.npy")
        for name, block in _slots(spec, codes):
            if name == "campaign":  # DuckDB has no murmur hash
                continue
            np.testing.assert_array_equal(block, _padded(rows[f"code_{name}"], block.shape[1]))
        numbers = np.load(built / "tensors" / split / "numbers.npy")
        names = ["age_scaled", "age_missing", "price_log", "price_missing"]
        np.testing.assert_allclose(numbers[:, :4], rows.select(names), rtol=1e-5, atol=1e-6)
        labels = np.load(built / "tensors" / split / "labels.npy")
        np.testing.assert_array_equal(labels, rows.select("click", "conversion"))


def _slots(spec: FeatureSpec, codes: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    first = 0
    for feature in spec.code_features:
        name = feature.column if isinstance(feature, Categorical) else feature.name
        yield name, codes[:, first : first + feature.num_slots]
        first += feature.num_slots


def _padded(values: pl.Series, width: int) -> np.ndarray:
    if values.dtype != pl.List:
        return values.to_numpy()[:, None]
    padded = values.fill_null([]).list.concat(pl.Series([[0] * width])).list.head(width)
    return padded.list.to_array(width).to_numpy()


def test_aggregates_are_those_of_duckdb(logs: Path, prepared: pl.DataFrame) -> None:
    right = _aggregates(logs, prepared.select("impression_id", "split"))
    for aggregate in AGGREGATES:
        name = aggregate["name"]
        found, sums = prepared[name].to_numpy(), right[name].cast(pl.Float32).to_numpy()
        if aggregate["kind"] == "mean":
            np.testing.assert_allclose(found, sums, rtol=1e-6)
            assert np.isnan(found).any()
        else:
            np.testing.assert_array_equal(found, sums, err_msg=name)
        assert len(np.unique(found)) > 5, name


def _aggregates(logs: Path, splits: pl.DataFrame) -> pl.DataFrame:
    """Add up, for each row, all rows and events of its entity on the days that count for it."""
    database = duckdb.connect()
    database.register("splits", splits.to_arrow())
    files = {name: f"read_parquet('{logs}/{name}/*.parquet')" for name in funnel_sql.LOGS}
    database.execute("CREATE MACRO day_of(ts) AS epoch_us(ts) // 86400000000")
    database.execute(
        f"""
        CREATE TABLE shown AS
        SELECT i.*, day_of(i.ts) AS day, day_of(c.ts) AS clicked, s.split = 'train' AS train,
            CASE WHEN v.ts - c.ts <= INTERVAL 72 HOUR THEN day_of(v.ts) END AS sold
        FROM {files["impressions"]} i JOIN splits s USING (impression_id)
        LEFT JOIN {files["clicks"]} c USING (impression_id)
        LEFT JOIN {files["conversions"]} v USING (impression_id)
        """
    )
    clicks = "SELECT avg((clicked IS NOT NULL)::INTEGER) FROM shown WHERE train"
    ((prior,),) = database.execute(clicks).fetchall()

    def past(
        name: str, of: str, on: str, first: str, last: str, where: str, what: str = "count(*)"
    ) -> str:
        """Add up `what` of an entity's rows whose day `on` is from `first` up to before `last`."""
        return f"""(
            SELECT a.{of}, a.day, {what} AS answer
            FROM (SELECT DISTINCT {of}, day FROM shown) a JOIN shown p ON p.{of} = a.{of}
            AND p.{on} >= {first} AND p.{on} < {last} AND {where} GROUP BY ALL
        ) {name} USING ({of}, day)"""

    def rate(part: str) -> str:
        return f"""CASE WHEN shown_{part}.answer IS NULL THEN $prior ELSE
            (coalesce(clicked_{part}.answer, 0) + {PRIOR_WEIGHT}::DOUBLE * $prior)
            / (shown_{part}.answer + {PRIOR_WEIGHT}) END"""

    average = "avg(price::DOUBLE)"
    return database.sql(
        f"""
        SELECT {rate("near")} AS item_rate, {rate("far")} AS item_rate_daily,
            coalesce(seen.answer, 0) AS user_shown, coalesce(bought.answer, 0) AS item_sold,
            priced.answer AS brand_price
        FROM shown r
        LEFT JOIN {past("shown_near", "item_id", "day", "a.day - 3", "a.day", "train")}
        LEFT JOIN {past("clicked_near", "item_id", "clicked", "a.day - 3", "a.day", "train")}
        LEFT JOIN {past("shown_far", "item_id", "day", "0", "a.day - 1", "true")}
        LEFT JOIN {past("clicked_far", "item_id", "clicked", "0", "a.day - 1", "true")}
        LEFT JOIN {past("seen", "user_id", "day", "a.day - 2", "a.day", "true")}
        LEFT JOIN {past("bought", "item_id", "sold", "0", "a.day", "true")}
        LEFT JOIN {past("priced", "brand", "day", "0", "a.day", "train", average)}
        ORDER BY impression_id
        """,
        params={"prior": prior},
    ).pl()
