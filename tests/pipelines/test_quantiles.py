"""Order statistics are exact, whatever the numbers, without sorting them."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.fitting.quantiles import RankSearch, float_keys, floats_of, order_statistics

draw = np.random.default_rng(5)
NUMBERS = {
    "spread over all magnitudes": draw.normal(size=5001) * 10.0 ** draw.integers(-300, 300, 5001),
    "few values": draw.integers(-3, 4, 5000).astype(np.float64),
    "neighbours of one": 1 + np.arange(-2000, 2000) * 2.0**-53,
    "the ends of float64": np.array([5e-324, -5e-324, 1.7e308, -1.7e308, 0.0, -0.0]),
    "one alone": np.array([-7.25]),
    "negative float32": -draw.gamma(0.3, size=3000).astype(np.float32).astype(np.float64),
    "small integers": draw.geometric(0.01, 3000) - 150.0,
    "nothing but zero": np.array([0.0, -0.0, 0.0]),
    "negative powers of two": -(2.0 ** np.arange(-40.0, 40.0)),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_number_at_a_rank_is_that_of_the_sorted_column(kind: str) -> None:
    numbers = NUMBERS[kind]
    ranks = [*range(0, len(numbers), max(1, len(numbers) // 700)), len(numbers) - 1]
    with_nulls = pl.Series([None, *numbers.tolist(), None])
    plan = pl.LazyFrame({"x": with_nulls, "constant": [2.5] * len(with_nulls)})

    found = order_statistics(plan, {"x": ranks, "constant": [0, len(numbers)], "unasked": []})

    assert found == {"x": np.sort(numbers)[ranks].tolist(), "constant": [2.5, 2.5], "unasked": []}


def test_keys_keep_the_order_of_numbers_and_give_them_back() -> None:
    numbers = np.sort(np.concatenate([*NUMBERS.values(), [np.inf, -np.inf]]))

    keys = float_keys(numbers)

    assert (keys[1:] >= keys[:-1]).all()
    assert ((keys[1:] == keys[:-1]) == (numbers[1:] == numbers[:-1])).all()
    np.testing.assert_array_equal(floats_of(keys), numbers)


def test_memory_is_bounded_for_any_number_of_ranks() -> None:
    search = RankSearch(range(0, 100_000, 97))
    numbers = float_keys(draw.normal(size=100_000))
    while not search.is_done:
        held = [value for value in vars(search).values() if isinstance(value, np.ndarray)]
        assert sum(array.nbytes for array in held) <= 2**21 + 2**16
        search.add(numbers)
        search.refine()


def test_rows_may_come_in_any_order_and_in_any_row_groups(tmp_path: Path) -> None:
    numbers = pl.Series("x", draw.gamma(0.3, size=200_000)).cast(pl.Float32).cast(pl.Float64)
    ranks = list(range(0, 200_000, 1999))
    numbers.to_frame().write_parquet(tmp_path / "a.parquet", row_group_size=977)
    numbers.shuffle(seed=1).to_frame().write_parquet(tmp_path / "b.parquet")

    both = [
        order_statistics(pl.scan_parquet(tmp_path / name), {"x": ranks})["x"]
        for name in ("a.parquet", "b.parquet")
    ]

    assert both[0] == both[1] == numbers.sort()[ranks].to_list()
