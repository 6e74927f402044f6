r"""What sums over rows say: spread, quantiles, variance explained, agreement of two partitions.

Shapes: E experts, S segments, Q steps of a histogram, C clusters.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def eta_squared(rows_S: Floats, sums_SE: Floats, squares_E: Floats) -> Floats:
    r"""Return the share of each weight's variance that lies between segments, (E,), NaN for none.

    .. math:: \eta^2_e = \frac{\sum_s n_s (\bar w_{se} - \bar w_e)^2}{\sum_n (w_{ne} - \bar w_e)^2}

    Args:
        rows_S: Rows of each segment, n.
        sums_SE: Sums of the weights over each segment's rows.
        squares_E: Sums of the squared weights over all rows.
    """
    rows, kept = rows_S.sum(), rows_S > 0
    mean_E = sums_SE.sum(0) / rows
    means_SE = sums_SE[kept] / rows_S[kept, None]
    between_E = rows_S[kept] @ np.square(means_SE - mean_E)
    total_E = squares_E - rows * np.square(mean_E)
    moves_E = total_E > 1e-10 * rows
    share_E = np.divide(between_E, total_E, out=np.full_like(between_E, np.nan), where=moves_E)
    clipped_E: Floats = share_E.clip(0, 1)
    return clipped_E


def adjusted_rand(counts_SC: Floats) -> float:
    r"""Return how far two partitions of the same rows agree: 1 wholly, about 0 by chance.

    The adjusted Rand index (Hubert and Arabie, Journal of Classification 1985) from the number of
    rows in each pair of a segment and a cluster, over pairs of rows:

    .. math:: \frac{\sum_{sc} \binom{n_{sc}}{2} - a b / t}{(a + b) / 2 - a b / t}, \quad
        a = \sum_s \binom{n_{s\cdot}}{2},\; b = \sum_c \binom{n_{\cdot c}}{2},\; t = \binom{n}{2}
    """

    def pairs(counts: Floats) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, a, b = pairs(counts_SC), pairs(counts_SC.sum(1)), pairs(counts_SC.sum(0))
    if both == a == b:  # the same partition, one whole or all single rows among them
        return 1.0
    chance = a * b / pairs(counts_SC.sum(keepdims=True))
    return (both - chance) / ((a + b) / 2 - chance)


def merged(counts_SC: Floats) -> Floats:
    """Return the counts with clusters joined that have most of their rows in the same segment."""
    joined = np.zeros((len(counts_SC), len(counts_SC)))
    np.add.at(joined.T, counts_SC.argmax(0), counts_SC.T)
    return joined


def quantile(histogram_Q: Floats, share: float, top: float) -> float:
    """Return the smallest step of 0, …, `top` with at least a share of the rows up to it."""
    up_to_Q = histogram_Q.cumsum()
    step = int(np.searchsorted(up_to_Q, share * up_to_Q[-1] * (1 - 1e-12)))
    return top * step / (len(histogram_Q) - 1)


def coarse(histogram_Q: Floats, bins: int) -> list[float]:
    """Return shares of the rows in a few equal intervals."""
    edges = np.linspace(0, len(histogram_Q), bins + 1).round().astype(int)[:-1]
    return list(np.add.reduceat(histogram_Q, edges) / max(histogram_Q.sum(), 1))


def effective(shares_E: Floats) -> float:
    r"""Return :math:`\exp H(w)`, the number of experts that even weights would be spread over."""
    positive = shares_E[shares_E > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()))
