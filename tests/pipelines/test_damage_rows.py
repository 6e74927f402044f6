"""A row with a value that cannot be right goes to quarantine, with all its reasons."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

ITEM = {"kind": "categorical", "columns": ["item"]}
SOURCE = {"format": "parquet", "path": "rows.parquet"}
HASH = {"by": "hash", "column": "user"}
START = datetime(2026, 1, 1, tzinfo=UTC)


def rows(count: int = 300) -> pl.DataFrame:
    """Draw rows that features can be built from."""
    draw = random.Random(1)
    return pl.DataFrame(
        {
            "user": [draw.randrange(60) for _ in range(count)],
            "item": [f"i{draw.randrange(9)}" for _ in range(count)],
            "at": [START + timedelta(minutes=n) for n in range(count)],
            "tags": [[f"t{draw.randrange(4)}"] for _ in range(count)],
            "click": [draw.randrange(2) for _ in range(count)],
        }
    )


def _set(column: str, value: pl.Expr) -> dict[str, pl.Expr]:
    """Return a replacement of one value, that of the third row."""
    return {column: pl.when(pl.int_range(pl.len()) == 2).then(value).otherwise(pl.col(column))}


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "a negative time": (
        _set("at", pl.lit(datetime(1969, 12, 31, tzinfo=UTC))),
        "time at: not between 1970 and 2200",
    ),
    "a time far away": (
        _set("at", pl.lit(datetime(2200, 1, 1, tzinfo=UTC))),
        "time at: not between 1970 and 2200",
    ),
    "a list of a million": (
        _set("tags", pl.lit("t0").repeat_by(1_000_000)),
        "list tags: more than 10000 elements",
    ),
    "a label that is not a number": (
        {"click": pl.Series([0.0, 1.0, float("inf"), *([0.0, 1.0] * 149), 1.0][:300])},
        "label of click: not 0 or 1",
    ),
    "a weight that is not a number": (
        {"weight": pl.Series([1.0, 1.0, float("nan"), *([1.0] * 297)])},
        "row weight weight: not a finite number from 0 up",
    ),
    "two faults": (
        _set("at", pl.lit(datetime(1900, 1, 1, tzinfo=UTC)))
        | _set("tags", pl.lit("t0").repeat_by(10_001)),
        "time at: not between 1970 and 2200; list tags: more than 10000 elements",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_goes_to_quarantine_with_all_its_reasons(
    name: str, dataset_of: Any, build_features: Any
) -> None:
    replaced, reason = BAD_ROWS[name]
    tags = {"kind": "categorical", "name": "tags", "column": "tags", "max_len": 3}

    weight = {"row_weight": "weight"} if "weight" in replaced else {}
    value = dataset_of([ITEM, tags], source=SOURCE, split=HASH, time="at", **weight)
    output = build_features(value, {"rows": rows().with_columns(**replaced)})

    bad = pl.read_parquet(output / "quarantine" / "*.parquet")
    assert bad.select("row_id", "reason").rows() == [(2, reason)]
    kept = [pl.read_parquet(path) for path in (output / "prepared").rglob("*.parquet")]
    assert sorted(pl.concat(kept)["row_id"]) == [n for n in range(300) if n != 2]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_times_beyond_what_can_be_counted_are_bad_rows_and_no_panic(
    unit: str, dataset_of: Any, build_features: Any
) -> None:
    far = pl.lit(-(2**63) + 1).cast(pl.Datetime(unit, "UTC"))  # type: ignore[arg-type]
    frame = (
        rows().with_columns(pl.col("at").dt.cast_time_unit(unit)).with_columns(**_set("at", far))
    )

    value = dataset_of([ITEM], source=SOURCE, split=HASH, time="at")
    output = build_features(value, {"rows": frame})

    bad = pl.read_parquet(output / "quarantine" / "*.parquet")
    assert bad.select("row_id", "reason").rows() == [(2, "time at: not between 1970 and 2200")]
