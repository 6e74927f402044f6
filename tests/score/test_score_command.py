import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from export.score import main

ROOT = Path(__file__).resolve().parents[2]


def run(folder, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    return subprocess.run(
        [sys.executable, "-m", "export.score", *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_scores_and_says_so_in_plain_lines(artifact, shop, tmp_path):
    arguments = f"artifact={artifact}", "input=shop", "output=out", "keys=[request]"

    first, second = run(tmp_path, *arguments), run(tmp_path, *arguments)

    assert (first.returncode, first.stderr) == (0, "")
    assert "650 rows in = 639 scored + 11 quarantined" in first.stdout
    assert (second.returncode, second.stderr) == (0, "")
    assert "7 units verified and kept, 0 to do" in second.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "shop"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"output": None}, "output: wanted output=…"),
        ({"device": "gpu"}, "device=gpu: wanted cpu or cuda, got 'gpu'"),
        ({"device": "cuda"}, "device=cuda: wanted a working CUDA provider, got none"),
        ({"devise": "cpu"}, "Did you mean 'device'"),
        ({"input": "nowhere"}, "input=nowhere: wanted parquet files, got no such path"),
        ({"input": "s3://bucket/x"}, "input=s3://bucket/x: wanted a path on this machine"),
        ({"input": "empty.parquet"}, "wanted at least one row, got none in 1 files"),
        ({"input": "hollow"}, "input=hollow: wanted parquet files, got no parquet file"),
        ({"input": "cut.parquet"}, "cut.parquet: wanted a whole parquet file"),
        ({"input": "lacking.parquet"}, "column 'item': wanted integers"),
        ({"artifact": "shop"}, "wanted the folder of a complete artifact"),
        ({"keys": "[requets]"}, "column 'requets'"),
        ({"keys": "[p_click]"}, "keys: wanted columns of the input"),
        ({"outputs": "[p_clik]"}, "Did you mean 'p_click'"),
        ({"output": "shop/out"}, "wanted a folder apart from the input"),
        ({"output": "/dev/null/out"}, "output=/dev/null/out: wanted a folder that can be written"),
        ({"output": "cut.parquet"}, "output="),
        ({"input": "rows.csv"}, "wanted a whole parquet file (no other format is read)"),
        ({"input": "[shop,shop]"}, "input: wanted input=…, got ['shop', 'shop']"),
        ({"overwrite": "flase"}, "overwrite: wanted true or false, got 'flase'"),
        ({"batch_rows": "5"}, "batch_rows: wanted batch_rows.cpu, batch_rows.cuda"),
        ({"batch_rows.cpu": "many"}, "batch_rows.cpu: wanted a number, got 'many'"),
        ({"max_quarantine_share": "few"}, "max_quarantine_share: wanted a number, got 'few'"),
        ({"max_quarantine_share": "2"}, "max_quarantine_share: wanted a share from 0 to 1"),
        ({"max_quarantine_share": "0"}, "wanted at most 0.00% of the rows quarantined"),
    ],
)
def test_a_wrong_request_ends_in_one_line_and_its_exit_code(
    artifact, shop, rows, tmp_path, monkeypatch, capfd, change, line
):
    rows(0).write_parquet(tmp_path / "empty.parquet")
    rows(5).drop("item").write_parquet(tmp_path / "lacking.parquet")
    (tmp_path / "cut.parquet").write_bytes((shop / "a.parquet").read_bytes()[:-9])
    (tmp_path / "hollow").mkdir()
    (tmp_path / "rows.csv").write_text("user,item\nann,1\n")
    request = {"artifact": artifact, "input": "shop", "output": "out"} | change
    arguments = [f"{key}={value}" for key, value in request.items() if value is not None]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it for its process
    monkeypatch.setattr(sys, "argv", ["score", *arguments])

    with pytest.raises(SystemExit) as ended:
        main()

    errors = capfd.readouterr().err
    assert ended.value.code == (3 if "quarantined" in line else 2), errors
    assert len(errors.splitlines()) == 1
    assert errors.startswith("recsys-moe-score: ")
    assert line in errors
    assert ended.value.code == 3 or not (tmp_path / "out").exists()


def test_a_key_that_is_named_must_be_there_and_row_id_is_taken_where_it_is(
    artifact, rows, tmp_path
):
    rows(20, bad=False).with_columns(row_id=pl.int_range(100, 120)).write_parquet(
        tmp_path / "with.parquet"
    )
    rows(20, bad=False).write_parquet(tmp_path / "without.parquet")

    found = run(tmp_path, f"artifact={artifact}", "input=with.parquet", "output=out")
    refused = run(
        tmp_path, f"artifact={artifact}", "input=without.parquet", "output=x", "keys=[row_id]"
    )

    assert found.returncode == 0, found.stderr
    kept = pl.read_parquet(tmp_path / "out" / "parts" / "*.parquet")["row_id"].to_list()
    assert kept == list(range(100, 120))
    assert refused.returncode == 2
    assert "column 'row_id': wanted the key of each row" in refused.stderr
