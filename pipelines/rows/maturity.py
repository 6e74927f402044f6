"""Delayed labels: what is known of a row whose window is still open when the logs end.

Expressions over three columns of int64 microseconds: `time` of the impression, `start` of its
window (the first click, say; null where there is none, the impression itself where the window
opens with it) and `delay` from start to the first positive event, null where there is none. The
logs are complete up to a moment `until`; what they say of later moments is not looked at.

Weights undo the shift that waiting would undo (Yasui et al., WWW 2020, arXiv 2002.02068). Of the
started rows a share p turns positive, a share F(t) of those within t of the start. After t a row
is seen as positive with probability p F(t): it stands for 1 / F(t) positives. It is seen as
negative with probability 1 - p F(t), where 1 - p would be right: it counts (1 - p) / (1 - p F(t)).
p is one number here, and F is one curve.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys_moe.errors import DataError

NUM_BINS = 1024
MAX_WEIGHT = 10.0

_START, _DELAY = pl.col("start"), pl.col("delay")


def label(window: int, until: int) -> pl.Expr:
    """Return 1 where a positive event within the window has been seen, else 0 (int64)."""
    in_time = _DELAY.is_between(0, window) & (until - _START >= _DELAY)
    return in_time.fill_null(False).cast(pl.Int64)


def is_mature(window: int, until: int) -> pl.Expr:
    """Return whether no later event can change a label.

    The window has closed for the impression, so that a start would have been seen if it was going
    to be, and for the start, if there is one.
    """
    return (until - pl.col("time") >= window) & (until - _START >= window).fill_null(True)


@dataclass(frozen=True, slots=True)
class Delays:
    """How long positives took, of the started rows whose window has closed.

    Whole numbers, so that they add up to the same over any buckets: `counts` in bins of equal
    width over the window, and the number of started rows, positive or not.
    """

    counts: NDArray[np.int64]
    num_started: int

    def __add__(self, other: "Delays") -> "Delays":
        """Add up the counts of two sets of rows."""
        return Delays(self.counts + other.counts, self.num_started + other.num_started)

    @property
    def positive_rate(self) -> float:
        """The share of started rows that turn positive within the window."""
        return int(self.counts.sum()) / self.num_started if self.num_started else 0.0

    @property
    def cumulative(self) -> NDArray[np.float64]:
        """The share of positives seen by the start of each bin, and 1 at the end of the last."""
        below = np.concatenate([[0], np.cumsum(self.counts)])
        return below / max(int(below[-1]), 1)


def delay_counts(rows: pl.DataFrame, window: int, until: int) -> Delays:
    """Count the delays of mature rows that have started.

    Args:
        rows: `time`, `start` and `delay` of rows of train: nothing else may be fitted on.
        window: How long an event counts, microseconds.
        until: Up to when the logs are complete, microseconds UTC.
    """
    mature = rows.filter(_START.is_not_null(), is_mature(window, until))
    positive = mature.filter(label(window, until) == 1)["delay"].to_numpy()
    bins = np.minimum(positive * NUM_BINS // window, NUM_BINS - 1)
    return Delays(np.bincount(bins, minlength=NUM_BINS), len(mature))


def label_weight(delays: Delays, window: int, until: int, what: str) -> pl.Expr:
    """Return how much the label of each row counts (float64).

    1 where it is mature, and where nothing has started; for other rows the weights above, that of
    a positive at most `MAX_WEIGHT`. F runs straight between the edges of the bins.

    Args:
        delays: The counts of all mature rows of train.
        window: How long an event counts, microseconds.
        until: Up to when the logs are complete, microseconds UTC.
        what: What to call the task in an error.

    Raises:
        DataError: No mature row is positive: there is nothing to tell the delays from.
    """
    if not delays.counts.any():
        raise DataError(
            f"{what}: wanted positive rows whose window has closed, to learn the delays from, "
            f"got none among {delays.num_started} started rows (immature: drop needs none)"
        )
    curve = delays.cumulative
    low, rise = (pl.lit(pl.Series(values)) for values in (curve[:-1], np.diff(curve)))
    place = (until - _START).clip(0, window) * (NUM_BINS / window)
    in_bin = place.cast(pl.Int64).clip(0, NUM_BINS - 1)
    seen = low.gather(in_bin) + rise.gather(in_bin) * (place - in_bin)
    rate = delays.positive_rate
    positive = (1.0 / seen).clip(upper_bound=MAX_WEIGHT)
    negative = ((1.0 - rate) / (1.0 - rate * seen)).fill_nan(0.0)  # if all turn positive, and soon
    weight = pl.when(label(window, until) == 1).then(positive).otherwise(negative)
    settled = _START.is_null() | is_mature(window, until)
    return pl.when(settled).then(1.0).otherwise(weight)
