"""Sums over batches are those over all rows, and what is read off them is what it says."""

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from recsys_moe.errors import RequestError
from recsys_moe.gate_report.layer_report import layer_report
from recsys_moe.gate_report.segments import Segments, fit
from recsys_moe.gate_report.statistics import adjusted_rand, effective, eta_squared, merged
from recsys_moe.gate_report.sums import LayerSums
from recsys_moe.modules.gated import Layer
from recsys_moe.moe.monitor import Monitor
from recsys_moe.moe.router_top_k import TopKRouter
from recsys_moe.moe.routing import Routing

N, E = 1000, 5
LAYER = Layer("experts", tuple("abcde"), ("click", "buy"), (None,) * E, ((True,) * E,) * 2)


def routings() -> dict[str, Routing]:
    torch.manual_seed(3)
    x_ND = torch.randn(N, 8)
    with torch.no_grad():
        return {gate: TopKRouter(8, E, 2)(x_ND) for gate in LAYER.gates}


def part(routing: Routing, rows: slice) -> Routing:
    index = None if routing.index is None else routing.index[rows]
    return Routing(routing.weights[rows], index, routing.probs[rows], routing.logits[rows])


def test_a_report_from_batches_is_that_of_all_rows_at_once() -> None:
    decided, rng = routings(), np.random.default_rng(0)
    segment_N = rng.integers(3, size=N)
    sums, monitor = LayerSums(LAYER.gates, LAYER.visible, [5]), Monitor(E, LAYER.gates)
    for rows in (slice(0, 1), slice(1, 400), slice(400, N)):
        mine = {gate: part(routing, rows) for gate, routing in decided.items()}
        sums.add(mine, [segment_N[rows]])
        monitor.update(mine)
    names = ("s0", "s1", "s2", "others", "missing")
    found = layer_report(LAYER, sums, monitor.read(), [Segments("s", names, names[:3])])

    used: Tensor = torch.zeros(N, E, dtype=torch.bool)
    for gate, routing in decided.items():
        w = routing.dense().double().numpy()
        used |= routing.chosen()
        said = found["gate_weights"][gate]
        np.testing.assert_allclose(said["mean"], w.mean(0), rtol=1e-6)
        np.testing.assert_allclose(said["std"], w.std(0), rtol=1e-4)
        np.testing.assert_allclose(said["used"], (w > 0).mean(0), rtol=1e-6)
        largest = w.argmax(1)
        np.testing.assert_allclose(said["largest"], np.bincount(largest, minlength=E) / N)
        for name, share in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9)):
            exact = np.quantile(w, share, axis=0, method="inverted_cdf")
            np.testing.assert_allclose(said[name], exact, atol=0.0006)
        column = found["columns"]["s"]
        assert column["segments"] == ["s0", "s1", "s2"]
        means = np.stack([w[segment_N == s].mean(0) for s in range(3)])
        np.testing.assert_allclose(column["gates"][gate]["mean"], means, rtol=1e-5)
        between = ((means[segment_N] - w.mean(0)) ** 2).sum(0) / ((w - w.mean(0)) ** 2).sum(0)
        np.testing.assert_allclose(column["gates"][gate]["eta_squared"], between, rtol=1e-4)
        agreement = adjusted_rand_score(segment_N, largest)
        assert column["gates"][gate]["agreement"] == pytest.approx(agreement, abs=1e-7)
    assert found["health"]["active_per_row"] == pytest.approx(used.sum(1).double().mean().item())


def test_a_row_sent_nowhere_has_no_largest_expert() -> None:
    sums = LayerSums(["click"], [[True] * E], [])
    hidden = torch.arange(N) % 2 == 0
    sums.add({"click": routings()["click"].masked(~hidden)}, [])

    assert sums.largest_GE.sum() == N / 2


@pytest.mark.parametrize("seed", range(5))
def test_agreement_is_the_adjusted_rand_index(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(1 + seed, size=300)
    b = np.where(rng.random(300) < 0.5, a, rng.integers(6, size=300))
    counts = np.zeros((6, 6))
    np.add.at(counts, (a, b), 1)

    assert adjusted_rand(counts) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)


def test_experts_of_one_segment_count_as_one() -> None:
    counts = np.array([[50.0, 40, 0, 0], [0, 1, 30, 60]])

    assert merged(counts).tolist() == [[90, 0], [1, 90]]
    assert adjusted_rand(merged(counts)) > 0.95 > adjusted_rand(counts)


def test_a_weight_that_never_moves_is_explained_by_nothing() -> None:
    rows, sums = np.array([3.0, 7.0]), np.array([[1.5, 0.0], [3.5, 7.0]])

    assert np.isnan(eta_squared(rows, sums, np.array([2.5, 7.0]))[0])
    assert eta_squared(rows, sums, np.array([2.5, 7.0]))[1] == pytest.approx(1)


def test_even_weights_are_as_many_experts_as_there_are() -> None:
    assert effective(np.full(7, 1 / 7)) == pytest.approx(7)


@pytest.mark.parametrize("values", [range(1000), [x / 7 for x in range(1000)]])
def test_a_number_is_cut_into_tenths(values: list[float]) -> None:
    frame = pl.DataFrame({"x": [None, *values]})
    segments = fit(frame.lazy(), "x", cut=True)

    counts = np.bincount(segments.codes(frame["x"]), minlength=11)
    assert counts.tolist() == [*[100] * 10, 1]
    assert len(set(segments.names)) == 11


def test_the_largest_twenty_values_have_a_segment() -> None:
    values = [f"v{n:02}" for n in range(30) for _ in range(n + 1)]
    frame = pl.DataFrame({"x": [*values, None, "new"]})
    segments = fit(frame[:-1].lazy(), "x", cut=True)

    assert segments.names == (*(f"v{n:02}" for n in range(29, 9, -1)), "others", "missing")
    codes = segments.codes(frame["x"])
    counts = np.bincount(codes)
    assert counts.tolist() == [*range(30, 10, -1), 55 + 1, 1]


@pytest.mark.parametrize(
    ("series", "names"),
    [
        (pl.Series("x", [True, False, True]), ["true", "false"]),
        (pl.Series("x", [5, -1, 3]), ["-1", "3", "5"]),
        (pl.Series("x", [0.5, float("nan"), 0.25]), ["0.25", "0.5", None]),
        (pl.Series("x", [[1, 2], [], [3]]), ["0", "1", "2"]),
        (pl.Series("x", ["2024-01-02", "2024-05-01", "2024-01-01"]).str.to_date(), None),
        (pl.Series("x", [None, None, None], dtype=pl.String), [None]),
    ],
)
def test_any_type_has_segments(series: pl.Series, names: list[str | None] | None) -> None:
    segments = fit(series.to_frame().lazy(), "x", cut=True)
    codes = segments.codes(series)

    assert len(codes) == 3
    assert codes.max() < len(segments.names)
    if names is not None:
        assert segments.names == (*filter(None, names), "others", "missing")
        assert {segments.names[c] for c in codes} == {name or "missing" for name in names}


def test_vectors_have_none() -> None:
    frame = pl.DataFrame({"x": pl.Series([[1.0, 2.0]], dtype=pl.Array(pl.Float32, 2))})
    with pytest.raises(RequestError, match="x: wanted a column of values or lists"):
        fit(frame.lazy(), "x", cut=True)
