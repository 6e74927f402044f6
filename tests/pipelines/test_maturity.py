"""Laws of delayed labels: what weights and masks make of rows whose window is open."""

import numpy as np
import polars as pl
import pytest

from pipelines.rows.maturity import (
    MAX_WEIGHT,
    NUM_BINS,
    Delays,
    delay_counts,
    is_mature,
    label,
    label_weight,
)
from recsys_moe.errors import DataError

HOUR = 3_600_000_000
DAY = 24 * HOUR
WINDOW = 7 * DAY
UNTIL = 60 * DAY
MEAN_DELAY = 2 * DAY
RATE = 0.25


def clicks(size: int, seed: int) -> pl.DataFrame:
    """Started rows at moments over all days, a quarter of which convert after a while."""
    draw = np.random.default_rng(seed)
    time = draw.integers(0, UNTIL, size)
    start = time + draw.exponential(HOUR, size).astype(np.int64)
    curve = 1 - np.exp(-WINDOW / MEAN_DELAY)
    delay = -MEAN_DELAY * np.log1p(-draw.random(size) * curve)  # exponential, within the window
    ever = draw.random(size) < RATE
    rows = pl.DataFrame({"time": time, "start": start, "delay": delay.astype(np.int64)})
    rows = rows.with_columns(delay=pl.when(pl.Series(ever)).then("delay"))
    return rows.filter(pl.col("start") <= UNTIL)


def logged(rows: pl.DataFrame) -> pl.DataFrame:
    """The same rows as the logs show them at the end: what is yet to come is not in them."""
    return rows.with_columns(
        delay=pl.when(pl.col("start") + pl.col("delay") <= UNTIL).then("delay")
    )


def rate(rows: pl.DataFrame, weight: pl.Expr) -> float:
    made = rows.select(y=label(WINDOW, UNTIL), w=weight)
    return float(np.average(made["y"].to_numpy(), weights=made["w"].to_numpy()))


def test_weights_make_up_for_what_is_yet_to_come() -> None:
    truth = clicks(600_000, 1)
    rows = logged(truth)
    delays = delay_counts(rows, WINDOW, UNTIL)
    weight = label_weight(delays, WINDOW, UNTIL, "tasks[1]")
    seen = -np.log1p(-0.12 * (1 - np.exp(-WINDOW / MEAN_DELAY))) * MEAN_DELAY  # F = 0.12
    old_enough = UNTIL - pl.col("start") > seen  # no weight is at its cap
    immature = rows.filter(~is_mature(WINDOW, UNTIL), old_enough)
    made = immature.select(y=label(WINDOW, UNTIL), w=weight)
    parts = (made["w"] * (made["y"] - RATE)).to_numpy()
    error = np.sqrt((parts**2).sum()) / made["w"].sum()

    assert abs(rate(immature, weight) - RATE) < 3 * error < 0.02
    assert made["w"].mean() == pytest.approx(1, abs=0.02)
    assert rate(immature, pl.lit(1.0)) < RATE - 0.05


def test_rows_whose_window_has_closed_have_the_true_rate() -> None:
    rows = logged(clicks(200_000, 2))
    mature = rows.filter(is_mature(WINDOW, UNTIL))
    error = np.sqrt(RATE * (1 - RATE) / len(mature))

    assert abs(rate(mature, pl.lit(1.0)) - RATE) < 3 * error
    assert delay_counts(rows, WINDOW, UNTIL).positive_rate == rate(mature, pl.lit(1.0))


def test_weights_are_those_of_the_paper_row_by_row() -> None:
    rows = logged(clicks(3_000, 3))
    some = pl.concat([rows, rows.head(500).with_columns(start=None, delay=None)], how="diagonal")
    mature = [
        row["delay"]
        for row in rows.to_dicts()
        if UNTIL - row["time"] >= WINDOW and UNTIL - row["start"] >= WINDOW
    ]
    positive = sorted(delay for delay in mature if delay is not None)
    share = len(positive) / len(mature)

    weights = some.select(label_weight(delay_counts(rows, WINDOW, UNTIL), WINDOW, UNTIL, "t"))

    assert len(positive) > 300
    for row, (weight,) in zip(some.to_dicts(), weights.iter_rows(), strict=True):
        if row["start"] is None or UNTIL - max(row["time"], row["start"]) >= WINDOW:
            assert weight == 1
            continue
        passed = UNTIL - row["start"]
        bin_width = WINDOW / NUM_BINS
        low, high = (
            np.searchsorted(positive, edge, side="right") / len(positive)
            for edge in (passed - bin_width, passed + bin_width)
        )
        if row["delay"] is not None:
            assert min(1 / high, MAX_WEIGHT) <= weight <= min(1 / max(low, 1e-9), MAX_WEIGHT)
        else:
            bounds = [(1 - share) / (1 - share * seen) for seen in (low, high)]
            assert bounds[0] - 1e-12 <= weight <= bounds[1] + 1e-12


def test_where_delays_are_spread_evenly_the_share_seen_is_the_share_of_time_passed() -> None:
    passed = np.random.default_rng(6).integers(0, WINDOW, 1_000)
    rows = pl.DataFrame({"time": UNTIL - passed, "start": UNTIL - passed})
    share = passed / WINDOW
    delays = Delays(np.ones(NUM_BINS, np.int64), 2 * NUM_BINS)

    for delay, wanted in (
        (0, np.minimum(1 / share, MAX_WEIGHT)),
        (None, (1 - 0.5) / (1 - 0.5 * share)),
    ):
        some = rows.with_columns(delay=pl.lit(delay, pl.Int64))
        weights = some.select(label_weight(delays, WINDOW, UNTIL, "t")).to_series()
        np.testing.assert_allclose(weights.to_numpy(), wanted, rtol=1e-9)


def test_delays_add_up_to_the_same_over_any_buckets() -> None:
    rows = logged(clicks(5_000, 4))
    whole = delay_counts(rows, WINDOW, UNTIL)
    parts = Delays(np.zeros(NUM_BINS, np.int64), 0)
    for part in rows.iter_slices(777):
        parts += delay_counts(part, WINDOW, UNTIL)

    assert parts.num_started == whole.num_started
    assert parts.counts.tolist() == whole.counts.tolist()
    weights = [
        rows.select(label_weight(delays, WINDOW, UNTIL, "t")).to_series().to_list()
        for delays in (whole, parts)
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("time", "start", "delay", "wanted"),
    [
        (0, 0, WINDOW, (1, True)),
        (0, 0, WINDOW + 1, (0, True)),
        (0, 0, 0, (1, True)),
        (0, None, None, (0, True)),
        (UNTIL - WINDOW, UNTIL - WINDOW, None, (0, True)),
        (UNTIL - WINDOW, UNTIL - WINDOW + 1, 5, (1, False)),
        (UNTIL - WINDOW + 1, None, None, (0, False)),
        (UNTIL - 10, UNTIL - 5, 5, (1, False)),
        (UNTIL - 10, UNTIL - 5, 6, (0, False)),
    ],
)
def test_both_ends_of_a_window_count(
    time: int, start: int | None, delay: int | None, wanted: tuple[int, bool]
) -> None:
    schema = dict.fromkeys(("time", "start", "delay"), pl.Int64)
    row = pl.DataFrame([(time, start, delay)], schema=schema, orient="row")

    assert row.select(label(WINDOW, UNTIL), is_mature(WINDOW, UNTIL).alias("m")).row(0) == wanted


def test_weights_cannot_be_learnt_from_nothing() -> None:
    young = logged(clicks(1_000, 5)).filter(pl.col("time") > UNTIL - WINDOW)

    with pytest.raises(DataError, match=r"tasks\[1\]: wanted positive rows .* got none among 0"):
        label_weight(delay_counts(young, WINDOW, UNTIL), WINDOW, UNTIL, "tasks[1]")


def test_odd_clocks_make_no_odd_weights() -> None:
    schema = dict.fromkeys(("time", "start", "delay"), pl.Int64)
    after_the_end, before_its_impression = (UNTIL - 5, UNTIL + DAY), (UNTIL - 5, UNTIL - 9 * DAY)
    moments = [(*after_the_end, None), (*before_its_impression, None), (*before_its_impression, 7)]
    rows = pl.DataFrame(moments, schema=schema, orient="row")
    delays = Delays(np.ones(NUM_BINS, np.int64), 2 * NUM_BINS)

    weights = rows.select(label_weight(delays, WINDOW, UNTIL, "t")).to_series()

    assert weights.to_list() == [0.5, 1.0, 1.0]  # nothing of the first can have been seen


def test_weights_are_finite_where_all_turn_positive_at_once() -> None:
    counts = np.zeros(NUM_BINS, np.int64)
    counts[0] = 9
    rows = pl.DataFrame({"time": [UNTIL - DAY], "start": [UNTIL - DAY]})
    rows = pl.concat(
        [rows.with_columns(delay=d) for d in (pl.lit(None, pl.Int64), pl.lit(5, pl.Int64))]
    )

    weights = rows.select(label_weight(Delays(counts, 9), WINDOW, UNTIL, "t")).to_series()

    assert weights.to_list() == [0.0, 1.0]
