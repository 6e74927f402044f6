"""Laws of the simulation: the same files for a seed, and a truth that is true."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.simulated import funnel
from recsys_moe.errors import RequestError
from recsys_moe.metrics import auc

Contents = Callable[[Path], dict[str, bytes]]
HOUR = 3_600_000_000


def read(folder: Path, log: str) -> pl.DataFrame:
    return pl.read_parquet(folder / log / "*.parquet")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "raw"
    funnel.simulate(folder, rows=300_000, seed=5, correlation=0.5)
    return folder


def simulated(folder: Path, **more: Any) -> Path:
    funnel.simulate(folder, **{"rows": 2_000, "seed": 3, "correlation": 0.5, **more})
    return folder


def test_a_seed_gives_the_same_files_and_another_gives_others(
    tmp_path: Path, contents: Contents
) -> None:
    first = contents(simulated(tmp_path / "a"))

    assert contents(simulated(tmp_path / "b")) == first
    for name, more in {"seed": 4, "correlation": 0.4}.items():
        other = contents(simulated(tmp_path / name, **{name: more}))
        assert all(other[file] != first[file] for file in first if file.startswith("truth/"))


def test_a_simulation_goes_on_after_its_last_whole_chunk(
    tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(funnel, "CHUNK_ROWS", 500)
    whole = contents(simulated(tmp_path / "whole"))
    made: list[int] = []
    chunk = funnel._chunk

    def failing(world: Any, memory: Any, ids: Any, *rest: Any) -> Any:
        made.append(len(ids))
        if len(made) == 3:
            raise KeyboardInterrupt
        return chunk(world, memory, ids, *rest)

    monkeypatch.setattr(funnel, "_chunk", failing)
    with pytest.raises(KeyboardInterrupt):
        simulated(tmp_path / "cut")
    (tmp_path / "cut" / "truth" / "part-00001.parquet").unlink()
    (tmp_path / "cut" / "clicks" / ".part-00002.parquet.7.tmp").write_bytes(b"torn")

    assert contents(simulated(tmp_path / "cut")) == whole

    assert made == [500] * 7  # never more than a chunk at a time; 0, 1, 2 (cut), 0, 1, 2, 3
    simulated(tmp_path / "cut")
    assert len(made) == 7
    with pytest.raises(RequestError, match="another seed"):
        simulated(tmp_path / "cut", seed=9)


def test_logs_are_those_promised_and_in_the_order_of_time(raw: Path) -> None:
    for log, columns in funnel.schemas().items():
        assert dict(read(raw, log).schema) == columns
    impressions = read(raw, "impressions")
    assert impressions["ts"].is_sorted()
    assert impressions["impression_id"].to_list() == list(range(300_000))
    assert read(raw, "truth")["impression_id"].equals(impressions["impression_id"])
    kinds = {str(kind) for kind in impressions.schema.values()}
    assert {"String", "Int64", "Float32", "List(String)", "List(Int64)"} <= kinds
    lists = impressions.select("interests", "topics")
    assert lists.null_count().row(0) > (0, 0)
    for name in lists.columns:
        assert lists[name].list.len().max() == 3
        assert lists[name].list.len().min() == 0
        assert lists[name].explode().null_count() > lists[name].null_count()


def test_the_truth_is_true(raw: Path) -> None:
    """Labels are as frequent as their probabilities say, in each decile of these."""
    clicks = read(raw, "clicks").rename({"ts": "clicked"})
    converted = read(raw, "conversions").join(clicks, on="impression_id")
    in_time = converted.filter(
        (pl.col("ts") - pl.col("clicked")).dt.total_microseconds()
        <= funnel.ATTRIBUTION_HOURS * HOUR
    )
    happened = {"click": clicks, "both": in_time, "like": read(raw, "likes")}
    truth = read(raw, "truth").with_columns(
        pl.col("impression_id").is_in(events["impression_id"].implode()).alias(label)
        for label, events in happened.items()
    )
    clicked = truth.filter("click")
    for rows, label, p in (
        (truth, "click", "p_click"),
        (clicked, "both", "p_conversion"),
        (truth, "both", "p_click_and_conversion"),
        (truth, "like", "p_like"),
    ):
        order = rows.sort(p)
        for part in np.array_split(np.arange(len(rows)), 10):
            mine = order[part[0] : part[-1] + 1]
            spread = (mine[p] * (1 - mine[p])).sum() ** 0.5
            assert abs(mine[label].sum() - mine[p].sum()) < 4 * spread
    product = truth["p_click"] * truth["p_conversion"]
    np.testing.assert_allclose(product, truth["p_click_and_conversion"], rtol=1e-12)
    assert converted["ts"].gt(converted["clicked"]).all()
    assert 0 < len(in_time) < len(converted) == len(read(raw, "conversions"))


def test_those_who_clicked_stay_as_long_as_the_truth_says(raw: Path) -> None:
    clicks = read(raw, "clicks").rename({"ts": "clicked"})
    dwell = read(raw, "dwell").join(clicks, on="impression_id", maintain_order="left")
    dwell = dwell.join(read(raw, "truth"), on="impression_id", maintain_order="left")
    stayed = (dwell["ts"] - dwell["clicked"]).dt.total_microseconds() / 1e6

    assert dwell["impression_id"].equals(clicks["impression_id"])
    np.testing.assert_allclose(stayed, dwell["seconds"], atol=2e-6)
    order = dwell.sort("y_dwell")
    for part in np.array_split(np.arange(len(order)), 10):
        mine = order[part[0] : part[-1] + 1]
        off = mine["seconds"] - mine["y_dwell"]
        assert abs(off.sum()) < 4 * (off**2).sum() ** 0.5


def test_a_click_depends_on_the_last_five_clicks_of_its_user(raw: Path) -> None:
    """What the truth adds to a logit, against a loop over the logs, across the chunks' edges."""
    clicked = set(read(raw, "clicks")["impression_id"].to_list())
    shown = read(raw, "impressions").select("impression_id", "user_id", "item_id", "category")
    memory: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    added = []
    for number, user, item, category in shown.iter_rows():
        last = memory[user][-5:]
        same = sum(before == category for _, before in last)
        added.append(1.2 * min(same, 3) - 2.0 * any(before == item for before, _ in last))
        if number in clicked:
            memory[user].append((item, category))
    p = read(raw, "truth").select("p_click", "p_click_without_memory").to_numpy()
    with_memory, without = np.log(p / (1 - p)).T

    np.testing.assert_allclose(with_memory - without, added, atol=1e-9)
    assert {round(value, 6) for value in added} >= {0, 1.2, 2.4, 3.6, -0.8, 0.4, 1.6}


def test_a_memory_is_worth_something_and_not_everything(raw: Path) -> None:
    truth = read(raw, "truth")
    click = np.zeros(len(truth))
    click[read(raw, "clicks")["impression_id"].to_numpy()] = 1

    knowing = auc(truth["p_click"].to_numpy(), click) or 0.0
    not_knowing = auc(truth["p_click_without_memory"].to_numpy(), click) or 0.0

    assert 0.02 < knowing - not_knowing < 0.04
    assert 0.15 < click.mean() < 0.25


def test_correlation_is_how_much_the_tastes_agree(tmp_path: Path) -> None:
    agreement = []
    for correlation in (-0.9, 0.0, 0.9):
        folder = simulated(tmp_path / str(correlation), rows=20_000, correlation=correlation)
        truth = read(folder, "truth")
        logits = [np.log(p / (1 - p)) for p in (truth["p_click"], truth["p_conversion"] * 0.999)]
        agreement.append(float(np.corrcoef(*logits)[0, 1]))
    assert agreement[0] < agreement[1] - 0.2 < agreement[2] - 0.4
