"""What the scoring job cuts away or puts aside, no feature reads."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest

from export.columns import raw_feeds
from export.faults import Faults
from export.feeds import build_feeds, graph_inputs
from export.fuzz import fuzzed_rows
from export.graph import open_graph
from export.preprocess import preprocess_model
from recsys_moe.spec import FeatureSpec

LISTS = {
    "first": ["history", "tags", "tags_hashed"],
    "last": ["history_last", "tags_last"],
    "both": ["history", "history_last", "tags", "tags_last"],
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_are_cut_to_what_features_keep(
    kind: str, spec: FeatureSpec, run: Path, tmp_path: Path
) -> None:
    spec = replace(spec, features=tuple(f for f in spec.features if f.name in LISTS[kind]))
    columns = [column for column in spec.columns if column.is_list]
    onnx.save(preprocess_model(replace(spec, columns=tuple(columns)), run), tmp_path / "p.onnx")
    frame = fuzzed_rows(spec, run, pl.DataFrame(), 2_000, seed=3)
    whole = raw_feeds(frame, columns)

    cut = build_feeds(frame, graph_inputs(columns, spec), Faults.none(len(frame)))

    longest = {"first": (4, 3), "last": (6, 2), "both": (10, 5)}[kind]
    assert (cut["history_ids"].shape[1], cut["tags_ids"].shape[1]) == longest
    assert whole["history_ids"].shape[1] > longest[0]
    session = open_graph(tmp_path / "p.onnx")
    np.testing.assert_array_equal(session.run(["codes"], whole)[0], session.run(["codes"], cut)[0])


def test_an_infinite_number_is_a_fault_unless_a_bucket_takes_it(spec: FeatureSpec) -> None:
    columns = [column for column in spec.columns if column.name in ("price", "ratio")]
    frame = pl.DataFrame(
        {"price": [1.0, float("inf"), None], "ratio": [float("-inf"), 2.0, 3.0]},
        schema=dict.fromkeys(("price", "ratio"), pl.Float32),
    )
    faults = Faults.none(3)

    feeds = build_feeds(frame, graph_inputs(columns, spec), faults)

    np.testing.assert_array_equal(feeds["price"], [1.0, np.inf, np.nan])
    np.testing.assert_array_equal(feeds["ratio"], [np.nan, 2.0, 3.0])
    assert faults.good.tolist() == [False, True, True]
