import json

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from export.job import Request, score_files
from export.score import Scorer
from recsys_moe.errors import DataError, RequestError
from recsys_moe.files import sha256_file

OUTPUTS = ["p_click", "p_conversion", "p_click_and_conversion"]


def score(artifact, where, output, **options):
    job = {k: options.pop(k) for k in ("max_quarantine_share", "overwrite") if k in options}
    return score_files(artifact, Request(input=str(where), **options), output, **job)


def read(output, kind):
    return pl.concat(pl.read_parquet(path) for path in sorted((output / kind).glob("*.parquet")))


def test_the_job_writes_what_the_scorer_returns(artifact, shop, tmp_path):
    score(artifact, shop, tmp_path / "out")

    rows = pl.concat(pl.read_parquet(shop / name) for name in ("a.parquet", "b.parquet"))
    wanted = Scorer(artifact).predict(rows).with_row_index("row_id").cast({"row_id": pl.Int64})
    assert_frame_equal(read(tmp_path / "out", "parts"), wanted.drop_nulls())


def test_every_row_is_scored_or_quarantined_with_all_its_columns_and_a_reason(
    artifact, shop, tmp_path
):
    summary = score(artifact, shop, tmp_path / "out")

    bad, good = read(tmp_path / "out", "quarantine"), read(tmp_path / "out", "parts")
    assert summary["rows_in"] == 650 == summary["rows_scored"] + summary["rows_quarantined"]
    assert summary["rows_scored"] == good.height
    assert sorted(bad["row_id"].to_list() + good["row_id"].to_list()) == list(range(650))
    rows = pl.concat(pl.read_parquet(shop / name) for name in ("a.parquet", "b.parquet"))
    assert_frame_equal(bad.select(rows.columns), rows[bad["row_id"].to_list()])
    reasons = bad.select(pl.col("_reasons").explode()).to_series().value_counts()
    assert dict(reasons.iter_rows()) == summary["reasons"]
    assert summary["reasons"] == {"infinite_number": 7, "scoring_error": 4}
    assert set(bad.filter(pl.col("item") == 666)["_reasons"].explode()) == {"scoring_error"}


def test_a_part_is_a_row_group_and_the_summary_lists_its_digest(artifact, shop, tmp_path):
    output = tmp_path / "out"

    summary = score(artifact, shop, output)

    units = [f"{0:05d}-{g:05d}" for g in range(4)] + [f"{1:05d}-{g:05d}" for g in range(3)]
    assert [part["path"] for part in summary["parts"]] == [f"parts/part-{u}.parquet" for u in units]
    for record in summary["parts"] + summary["quarantine"]:
        path = output / record["path"]
        assert path.stat().st_size == record["bytes"]
        assert sha256_file(path) == record["sha256"]
        assert pl.read_parquet(path).height == record["rows"]
    assert json.loads((output / "_SUCCESS.json").read_text()) == summary


def test_scores_that_are_no_numbers_are_quarantined(artifact, rows, tmp_path):
    frame = rows(50, bad=False).with_columns(
        price=pl.when(pl.int_range(pl.len()) == 7).then(2e6).otherwise("price")
    )
    frame.write_parquet(tmp_path / "in.parquet")

    summary = score(artifact, tmp_path / "in.parquet", tmp_path / "out")

    assert summary["reasons"] == {"non_finite_score": 1}
    assert read(tmp_path / "out", "quarantine")["row_id"].to_list() == [7]


def test_named_keys_and_outputs_are_the_columns_of_the_parts(artifact, shop, tmp_path):
    score(artifact, shop, tmp_path / "out", keys=("request", "ignored"), outputs=("logit_click",))

    assert read(tmp_path / "out", "parts").columns == ["request", "ignored", "logit_click"]


def test_a_null_key_is_quarantined_and_a_duplicate_only_where_keys_must_be_unique(
    artifact, rows, tmp_path
):
    frame = rows(40, bad=False).with_columns(
        request=pl.Series(
            ["same" if i % 10 == 3 else None if i == 9 else f"{i}" for i in range(40)]
        )
    )
    frame.write_parquet(tmp_path / "in.parquet", row_group_size=7)
    options = {"keys": ("request",), "max_quarantine_share": 1.0}

    free = score(artifact, tmp_path / "in.parquet", tmp_path / "free", **options)
    unique = score(
        artifact, tmp_path / "in.parquet", tmp_path / "unique", unique_keys=True, **options
    )

    assert free["duplicate_keys"] == unique["duplicate_keys"] == 3
    assert free["reasons"] == {"null_key": 1}
    assert unique["reasons"] == {"duplicate_key": 3, "null_key": 1}
    kept = read(tmp_path / "unique", "parts")["request"].to_list()
    assert kept == [k for i, k in enumerate(frame["request"]) if k and (k != "same" or i == 3)]


def test_duplicates_are_found_in_any_number_of_passes(artifact, rows, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    keys = random.integers(30, size=100)
    frame = rows(100, bad=False).with_columns(key=pl.Series(keys))
    frame.write_parquet(tmp_path / "in.parquet", row_group_size=9)
    monkeypatch.setattr("export.keys._ROWS_AT_ONCE", 20)

    summary = score(artifact, tmp_path / "in.parquet", tmp_path / "out", keys=("key",))

    assert summary["duplicate_keys"] == 100 - len(set(keys.tolist()))


def test_too_many_bad_rows_are_an_error_that_loses_nothing(artifact, shop, tmp_path):
    output = tmp_path / "out"

    with pytest.raises(DataError, match=r"7 infinite_number, 4 scoring_error"):
        score(artifact, shop, output, max_quarantine_share=0.01)

    assert not (output / "_SUCCESS.json").exists()
    parts = {path: path.stat().st_mtime_ns for path in output.glob("*/*.parquet")}
    score(artifact, shop, output, max_quarantine_share=0.02)
    assert parts == {path: path.stat().st_mtime_ns for path in output.glob("*/*.parquet")}
    assert (output / "_SUCCESS.json").exists()


def test_a_graph_that_fails_for_every_row_is_a_crash_and_quarantines_nobody(
    artifact, shop, tmp_path, monkeypatch
):
    from export.engines import GraphError
    from recsys_moe.errors import RecsysMoeError

    def fail(*_):
        raise GraphError("device lost")

    monkeypatch.setattr("export.engines._CpuEngine.run", fail)

    with pytest.raises(RecsysMoeError, match="every row: device lost"):
        score(artifact, shop, tmp_path / "out")

    assert not list((tmp_path / "out").glob("*/*.parquet"))


def test_files_of_a_folder_go_in_name_order_and_hidden_ones_are_left_out(artifact, rows, tmp_path):
    lake = tmp_path / "lake"
    for day in (2, 1):
        (lake / f"day={day}").mkdir(parents=True)
        frame = rows(10, seed=day, bad=False)
        frame.write_parquet(lake / f"day={day}" / "part.parquet")
    (lake / "_old").mkdir()
    rows(10).write_parquet(lake / "_old" / "part.parquet")

    for name, where in (("folder", lake), ("glob", f"{lake}/day=*/*.parquet"), ("g", f"{lake}/d*")):
        score(artifact, where, tmp_path / name, keys=("request",))
        keys = read(tmp_path / name, "parts")["request"].to_list()
        assert keys == [f"r{day}-{i}" for day in (1, 2) for i in range(10)]


def test_batch_size_changes_no_score_of_a_job(artifact, shop, tmp_path):
    for size in (3, 4096):
        score(artifact, shop, tmp_path / f"{size}", batch_rows={"cpu": size})

    small, large = read(tmp_path / "3", "parts"), read(tmp_path / "4096", "parts")
    assert_frame_equal(small, large, rel_tol=0, abs_tol=1e-6)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all PAR2"])
def test_a_file_that_is_no_parquet_is_named(artifact, tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)

    with pytest.raises(RequestError, match=r"x\.parquet: wanted a whole parquet file"):
        score(artifact, tmp_path / "x.parquet", tmp_path / "out")


def test_damaged_pages_are_named_and_leave_finished_units(artifact, shop, tmp_path):
    content = bytearray((shop / "b.parquet").read_bytes())
    content[4:2000] = b"\xff" * 1996
    (shop / "b.parquet").write_bytes(content)

    with pytest.raises(RequestError, match=r"b\.parquet: wanted a readable parquet file"):
        score(artifact, shop, tmp_path / "out")

    assert len(list((tmp_path / "out" / "parts").iterdir())) == 4
    assert not (tmp_path / "out" / "_SUCCESS.json").exists()


def test_categories_decimals_and_wide_integers_score_as_their_plain_values(
    artifact, rows, tmp_path
):
    plain = rows(60, bad=False).with_columns(pl.col("price").fill_nan(None))
    odd = plain.with_columns(
        pl.col("user", "request").cast(pl.Categorical),
        pl.col("price").cast(pl.Decimal(10, 2)),
        pl.col("item").cast(pl.Int8),
    )
    for name, frame in (("plain", plain), ("odd", odd)):
        frame.write_parquet(tmp_path / f"{name}.parquet", row_group_size=25)
        options = {"keys": ("request",), "batch_rows": {"cpu": 4}}
        score(artifact, tmp_path / f"{name}.parquet", tmp_path / name, **options)

    odd_parts = read(tmp_path / "odd", "parts").with_columns(pl.col("request").cast(pl.String))
    assert_frame_equal(odd_parts, read(tmp_path / "plain", "parts"))


def test_files_that_disagree_on_a_key_are_refused(artifact, rows, tmp_path):
    (tmp_path / "in").mkdir()
    for name, key in (("a", pl.lit(1, pl.Int64)), ("b", pl.lit("1"))):
        rows(5, bad=False).with_columns(key=key).write_parquet(tmp_path / "in" / f"{name}.parquet")

    with pytest.raises(RequestError, match=r"b\.parquet, key 'key': wanted int64"):
        score(artifact, tmp_path / "in", tmp_path / "out", keys=("key",))
