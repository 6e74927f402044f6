import datetime as dt
import math
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest
from polars.testing import assert_frame_equal, assert_series_equal

from export.faults import Faults
from export.feeds import Input, build_feeds
from export.score import Scorer
from export.scorer import _whole
from recsys_moe.errors import ArtifactError, RequestError
from recsys_moe.spec import INT64_MISSING, Column

ONE = {"user": ["ann"], "item": [1], "price": [1.0], "tags": [["bob"]]}


def test_predictions_are_the_definition(artifact, rows, oracle):
    frame = rows(5000, seed=5, bad=False)

    found = Scorer(artifact).predict(frame)

    assert set(found.dtypes) == {pl.Float32}
    np.testing.assert_allclose(found.to_numpy(), oracle(frame), atol=1e-6)


@pytest.mark.parametrize("batch_rows", [1, 7, 100_000])
def test_batch_size_changes_no_score(artifact, rows, batch_rows):
    frame = rows(500, seed=6)

    found = Scorer(artifact, batch_rows=batch_rows).predict(frame)

    wanted = Scorer(artifact).predict(frame)
    assert_frame_equal(found, wanted, rel_tol=0, abs_tol=1e-6)


def test_rows_that_cannot_be_scored_are_null_and_harm_no_other(artifact, rows):
    frame, scorer = rows(500, seed=7), Scorer(artifact)
    found = scorer.predict(frame)
    good = ~found["p_click"].is_null()

    assert 0 < (~good).sum() == found.null_count()["p_conversion"][0]
    alone = scorer.predict(frame.filter(good))
    assert_frame_equal(found.filter(good), alone, rel_tol=0, abs_tol=1e-6)


def test_a_mapping_and_an_arrow_table_score_as_a_frame_does(artifact, rows):
    frame, scorer = rows(20, seed=8, bad=False), Scorer(artifact, outputs=["logit_click"])
    wanted = scorer.predict(frame)

    assert_frame_equal(scorer.predict(frame.to_dict(as_series=False)), wanted)
    assert_frame_equal(scorer.predict(frame.to_arrow()), wanted)
    assert_frame_equal(scorer.predict(frame.lazy()), wanted)


def test_a_pandas_frame_scores_as_a_frame_does_though_missing_makes_its_integers_floats(
    artifact, rows
):
    frame, scorer = rows(50, seed=8, bad=False), Scorer(artifact)
    names = ["user", "item", "price", "tags"]
    pandas = pd.DataFrame({name: frame[name].to_list() for name in names})
    wanted = scorer.predict(frame)

    assert pandas["item"].dtype == float
    assert_frame_equal(scorer.predict(pandas), wanted)
    assert_frame_equal(scorer.predict(pandas.iloc[::-1]), wanted.reverse())
    with pytest.raises(RequestError, match=r"column 'item': wanted integers.*, got Float64"):
        scorer.predict(pandas.assign(item=0.5))


@pytest.mark.parametrize(
    ("floats", "wanted"),
    [
        ([1.0, None, float("nan")], pl.Series([1, None, None], dtype=pl.Int64)),
        ([[1.0, None], None, []], pl.Series([[1, None], None, []], dtype=pl.List(pl.Int64))),
        ([1.5, 2.0], pl.Series([1.5, 2.0])),
        ([2.0**60], pl.Series([2.0**60])),
        ([math.inf], pl.Series([math.inf])),
    ],
)
def test_floats_become_integers_only_where_nothing_is_lost(floats, wanted):
    kind = pl.List(pl.Float64) if isinstance(floats[0], list) else pl.Float64

    assert_series_equal(_whole(pl.Series(floats, dtype=kind)), wanted)


def test_no_rows_in_no_rows_out(artifact, rows):
    found = Scorer(artifact).predict(rows(0))

    assert (found.height, found.width) == (0, 3)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"itme": [1], "item": None}, "column 'item': wanted .* Did you mean 'itme'"),
        ({"item": [1.5]}, "column 'item': wanted integers.*, got Float64"),
        ({"item": ["1"]}, "column 'item': wanted integers.*, got String"),
        ({"price": [True]}, "column 'price': wanted floats.*, got Boolean"),
        ({"user": [b"ann"]}, "column 'user': wanted strings.*, got Binary"),
        ({"tags": ["bob"]}, "column 'tags': wanted lists of strings.*, got String"),
        ({"tags": [[1]]}, "column 'tags': wanted lists of strings.*, got List"),
        ({"price": [1.0, 2.0]}, "input: wanted a table of columns"),
    ],
)
def test_a_wrong_column_is_named_with_what_was_wanted_and_came(artifact, change, line):
    frame = {name: values for name, values in (ONE | change).items() if values is not None}

    with pytest.raises(RequestError, match=line):
        Scorer(artifact).predict(frame)


def test_an_unknown_output_is_refused_with_the_nearest(artifact):
    with pytest.raises(RequestError, match="Did you mean 'p_click'"):
        Scorer(artifact, outputs=["p_clik"])


def test_a_changed_artifact_is_refused_before_it_is_loaded(artifact, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in artifact.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    Scorer(copy)
    content = bytearray((copy / "model.onnx").read_bytes())
    content[100] ^= 1
    (copy / "model.onnx").write_bytes(content)

    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        Scorer(copy)


def test_cuda_without_a_device_is_an_error_and_never_the_cpu(artifact, capfd):
    try:
        scorer = Scorer(artifact, device="cuda")
    except RequestError as error:
        assert "device=cuda: wanted a working CUDA provider, got none" in str(error)  # noqa: PT017
    else:
        pytest.skip(f"a CUDA device is there: {scorer.outputs}")
    assert capfd.readouterr().err == ""


@pytest.mark.gpu
def test_cuda_gives_the_scores_of_the_cpu(artifact, rows):
    # Without the poisoned item: Gather raises on the CPU and gives zeros on CUDA beyond a table.
    frame = rows(5000, seed=9, bad=False)

    found = Scorer(artifact, device="cuda").predict(frame)

    assert_frame_equal(found, Scorer(artifact).predict(frame), rel_tol=0, abs_tol=1e-5)


def test_importing_the_scorer_loads_no_torch_no_onnx_and_takes_under_a_second():
    code = (
        "import time; t = time.perf_counter(); import export.score, sys;"
        "assert not {'torch', 'onnx', 'onnxruntime'} & sys.modules.keys();"
        "print(time.perf_counter() - t)"
    )
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(seconds) < 1


NOON = dt.datetime(1969, 12, 31, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("series", "kind", "wanted"),
    [
        (pl.Series([1, None, 255], dtype=pl.UInt8), "int64", [1, INT64_MISSING, 255]),
        (pl.Series([True, None, False]), "int64", [1, INT64_MISSING, 0]),
        (pl.Series([NOON, None]), "int64", [-43_200_000_000, INT64_MISSING]),
        (pl.Series([NOON]).dt.convert_time_zone("Asia/Tokyo"), "int64", [-43_200_000_000]),
        (pl.Series([dt.date(1970, 1, 2)]), "int64", [86_400_000_000]),
        (pl.Series([dt.time(0, 0, 1)]), "int64", [1_000_000]),
        (pl.Series([None, None]), "int64", [INT64_MISSING] * 2),
        (pl.Series([Decimal("1.5"), None]), "float32", [1.5, math.nan]),
        (pl.Series([3, None], dtype=pl.Int32), "float32", [3.0, math.nan]),
        (pl.Series(["a", None, ""], dtype=pl.Categorical), "string", ["a", "", ""]),
        (pl.Series(["a\0b"]), "string", ["a\0b"]),
    ],
)
def test_every_accepted_type_arrives_as_the_graphs_own(series, kind, wanted):
    item, faults = Input(Column(name="x", type=kind)), Faults.none(len(series))

    found = build_feeds(series.alias("x").to_frame(), [item], faults)["x"]

    assert found.dtype == {"int64": np.int64, "float32": np.float32, "string": object}[kind]
    np.testing.assert_array_equal(found, np.array(wanted, found.dtype))
    assert faults.good.all()


def test_values_beyond_their_type_are_faults_of_their_rows():
    big = pl.DataFrame({"x": pl.Series([1, 2**63], dtype=pl.UInt64), "y": [1e300, 0.0]})
    inputs = [Input(Column(name="x", type="int64")), Input(Column(name="y", type="float32"))]
    faults = Faults.none(2)

    build_feeds(big, inputs, faults)

    assert faults.details == {1: ["x"], 0: ["y"]}
    assert faults.flags.tolist() == [4, 8]


def test_lists_are_cut_padded_and_marked():
    lists = pl.Series("x", [[1, None, 3, 4], None, [], [2]], dtype=pl.List(pl.Int16))
    item = Input(Column(name="x", type="int64", is_list=True), kept=(3, 0))

    feeds = build_feeds(lists.to_frame(), [item], Faults.none(4))

    assert feeds["x_len"].tolist() == [3, 0, 0, 1]
    assert feeds["x_ids"][0].tolist() == [1, INT64_MISSING, 3]
    assert feeds["x_ids"][3, 0] == 2
