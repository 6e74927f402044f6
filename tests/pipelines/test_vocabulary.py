"""A vocabulary is the counted values in one order, and finds each of them and no other."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.encoding.hashes import xxhash64
from pipelines.fitting.vocabulary import Vocabulary, fit_vocabulary
from recsys_moe.errors import SpecError
from recsys_moe.spec import MOST_CODES, Column, FeatureSpec, Table, Task

WORDS = ["b", "a", "B", "é", "e\u0301", "日本", "\0", "\U0010ffff", "\ue000", "zz", "z"]


@pytest.mark.parametrize("max_size", [1, 3, 7, 8, 9, 10, None])
@pytest.mark.parametrize("kind", ["string", "int64"])
def test_ties_at_the_size_go_to_the_smaller_value(
    max_size: int | None, kind: Any, tmp_path: Path
) -> None:
    """All but two values occur three times: which of them stay is a matter of order alone."""
    values: list[Any] = [*WORDS] if kind == "string" else [-(2**62), 2**62, *range(-5, 4)]
    rows = values * 3 + [values[3]] * 2 + [values[5]]
    kept = sorted(values, key=lambda v: (-rows.count(v), v.encode() if kind == "string" else v))
    found = set()
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        pl.DataFrame({"x": rows}).write_parquet(tmp_path / "x.parquet", row_group_size=5 + seed)
        vocabulary = fit_vocabulary(
            pl.scan_parquet(tmp_path / "x.parquet"),
            [Column(name="x", type=kind)],
            min_frequency=2,
            max_size=max_size,
            first_code=4,
        )
        found.add(tuple(vocabulary.rows()))

    counts = Counter(rows)
    wanted = [(value, counts[value], 4 + i) for i, value in enumerate(kept[:max_size])]
    assert found == {tuple(wanted)}


def test_columns_that_share_a_table_are_counted_together() -> None:
    rows = pl.LazyFrame({"one": ["a", "b", None], "many": [["b", None, "c"], [], ["c", "c", "b"]]})
    columns = [
        Column(name="one", type="string"),
        Column(name="many", type="string", is_list=True),
    ]

    vocabulary = fit_vocabulary(rows, columns, min_frequency=2, max_size=None, first_code=3)

    assert vocabulary.rows() == [("b", 3, 3), ("c", 3, 4)]


def test_a_table_that_int32_cannot_number_is_refused() -> None:
    def spec(num_codes: int) -> FeatureSpec:
        return FeatureSpec(
            dataset="toy",
            columns=(),
            tables=(Table(name="huge", num_codes=num_codes, num_oov=1),),
            features=(),
            tasks=(Task(name="click", label="click"),),
            train_rows=1,
        )

    assert spec(MOST_CODES).table("huge").num_codes == 2**31 - 16
    with pytest.raises(SpecError, match=r"table .huge., num_codes: wanted .* got 2147483633"):
        spec(MOST_CODES + 1)


@pytest.mark.parametrize("kind", [pl.Int64, pl.String])
def test_a_value_is_found_where_it_stands(kind: Any) -> None:
    numbers = list(range(-1500, 1500))
    random.Random(0).shuffle(numbers)
    values = pl.Series(numbers, dtype=pl.Int64).cast(kind)
    asked = pl.Series([None, *range(-1700, 1700)], dtype=pl.Int64).cast(kind)

    places = Vocabulary(values).positions(asked)

    known = {value: place for place, value in enumerate(values)}
    assert places.tolist() == [known.get(value, -1) for value in asked]


def test_a_value_that_only_shares_a_hash_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that collide between values listed and asked never make them equal."""
    monkeypatch.setattr(
        "pipelines.fitting.vocabulary.xxhash64", lambda text, seed: xxhash64(text.str.head(1), seed)
    )
    vocabulary = Vocabulary(pl.Series(["apple", "berry"]))

    assert vocabulary.positions(pl.Series(["avocado", "apple", "berries"])).tolist() == [-1, 0, -1]


def test_an_empty_vocabulary_finds_nothing() -> None:
    assert Vocabulary(pl.Series([], dtype=pl.String)).positions(pl.Series(["a"])).tolist() == [-1]
