import fcntl
import os
import random
import shutil
import subprocess
import sys
import time

import polars as pl
import pytest

from export.job import Request, score_files
from recsys_moe.errors import RequestError

SCORE = [sys.executable, "-m", "export.score"]
SLOWEST_KILL_SECONDS = 0.6


def score(artifact, where, output, **options):
    overwrite = options.pop("overwrite", False)
    return score_files(artifact, Request(input=str(where), **options), output, overwrite=overwrite)


def contents(output):
    paths = [*output.glob("*/*"), output / "_SUCCESS.json"]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in paths}


def times(output):
    return {path.name: path.stat().st_mtime_ns for path in output.glob("*/*.parquet")}


@pytest.fixture
def done(artifact, shop, tmp_path):
    output = tmp_path / "out"
    score(artifact, shop, output)
    return output


def test_two_runs_write_the_same_bytes(artifact, shop, done, tmp_path):
    score(artifact, shop, tmp_path / "again")

    assert contents(tmp_path / "again") == contents(done)


def test_a_finished_job_does_nothing(artifact, shop, done, capsys):
    before = times(done), (done / "journal.jsonl").read_bytes()

    score(artifact, shop, done)

    assert before == (times(done), (done / "journal.jsonl").read_bytes())
    assert "7 units verified and kept, 0 to do" in capsys.readouterr().out


def delete(path):
    path.unlink()


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [delete, truncate, flip])
@pytest.mark.parametrize("kind", ["parts/part", "quarantine/bad"])
def test_exactly_the_damaged_unit_is_done_again(artifact, shop, done, capsys, damage, kind):
    wanted, before = contents(done), times(done)
    damage(done / f"{kind}-00000-00002.parquet")

    score(artifact, shop, done)

    after = times(done)
    again = {name for name in before if after[name] != before[name]}
    assert again == {"part-00000-00002.parquet", "bad-00000-00002.parquet"}
    assert contents(done) == wanted
    assert "6 units verified and kept, 1 to do" in capsys.readouterr().out


def test_the_mark_of_success_is_gone_while_a_unit_is_done_again(artifact, shop, done, monkeypatch):
    delete(done / "parts/part-00000-00002.parquet")
    monkeypatch.setattr("export.parts.Part.write", lambda *_: pytest.fail("stopped"))

    with pytest.raises(pytest.fail.Exception):
        score(artifact, shop, done)

    assert not (done / "_SUCCESS.json").exists()


@pytest.mark.parametrize("tail", [b'{"unit": "00001-000', b"\x00\x00", b"{}\n[1, 2]\nnull\n"])
def test_a_torn_journal_is_cut_and_kept(artifact, shop, done, tail):
    wanted, before = contents(done), times(done)
    with (done / "journal.jsonl").open("ab") as handle:
        handle.write(tail)

    score(artifact, shop, done)

    assert contents(done) == wanted
    assert times(done) == before
    assert (done / "journal.jsonl").read_bytes().endswith(b"\n")


def test_a_part_without_its_journal_line_is_written_again(artifact, shop, done):
    wanted = contents(done)
    journal = done / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-2]))

    score(artifact, shop, done)

    assert contents(done) == wanted
    assert len(journal.read_bytes().splitlines()) == 8


def test_stale_temporaries_are_removed(artifact, shop, done):
    for place in ("parts", "quarantine", "."):
        (done / place / ".part-00000-00000.parquet.12345.tmp").write_bytes(b"half")

    score(artifact, shop, done)

    assert not list(done.rglob("*.tmp"))


def test_another_request_is_refused_and_overwrite_starts_anew(
    artifact, other_artifact, shop, rows, done
):
    wanted = contents(done)
    for options, word in (
        ({"outputs": ("p_click",)}, "outputs"),
        ({"keys": ("request",)}, "keys"),
        ({"unique_keys": True}, "unique_keys"),
        ({"batch_rows": {"cpu": 99}}, "batch_rows"),
    ):
        with pytest.raises(RequestError, match=f"started with another {word}"):
            score(artifact, shop, done, **options)
    with pytest.raises(RequestError, match="started with another artifact"):
        score(other_artifact, shop, done)
    rows(10).write_parquet(shop / "c.parquet")
    with pytest.raises(RequestError, match="started with another input"):
        score(artifact, shop, done)
    assert contents(done) == wanted

    score(artifact, shop, done, overwrite=True)

    assert len(list((done / "parts").iterdir())) == 8


def test_a_folder_of_somebody_else_is_never_touched(artifact, shop, tmp_path, done):
    foreign = tmp_path / "home"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    (done / "notes.txt").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "request.json").write_text('{"stage": "train"}')

    for folder in (foreign, done, run):
        for overwrite in (False, True):
            before = sorted(folder.rglob("*"))
            with pytest.raises(RequestError, match="with other files"):
                score(artifact, shop, folder, overwrite=overwrite)
            assert sorted(folder.rglob("*")) == before


def test_a_second_writer_is_refused(artifact, shop, done):
    folder = os.open(done, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        with pytest.raises(RequestError, match="another that is running"):
            score(artifact, shop, done, overwrite=True)
    finally:
        os.close(folder)
    score(artifact, shop, done)


def test_killed_at_random_moments_the_output_is_that_of_an_undisturbed_run(
    artifact, rows, tmp_path
):
    rows(3000, seed=4).write_parquet(tmp_path / "in.parquet", row_group_size=10)
    wanted, output = tmp_path / "wanted", tmp_path / "out"
    score(artifact, tmp_path / "in.parquet", wanted)
    command = [*SCORE, f"artifact={artifact}", f"input={tmp_path}/in.parquet", f"output={output}"]
    moments, killed, journals = random.Random(7), 0, []
    while killed < 20:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        if killed % 5:  # the other kills land while the job starts
            process.stdout.readline()
        time.sleep(moments.uniform(0, SLOWEST_KILL_SECONDS))
        process.kill()
        errors = process.communicate()[1]
        assert process.returncode in (-9, 0), errors.decode()
        killed += process.returncode == -9
        if (output / "journal.jsonl").exists():
            journals.append((output / "journal.jsonl").read_bytes().count(b"\n"))
        if process.returncode == 0:  # it was too quick: the next kills need something to interrupt
            assert contents(output) == contents(wanted)
            shutil.rmtree(output)

    subprocess.run(command, check=True, capture_output=True)

    assert len(set(journals)) > 9, "the kills landed at too few places"
    assert contents(output) == contents(wanted)
    scored = pl.read_parquet(output / "parts" / "*.parquet")["row_id"].to_list()
    bad = pl.read_parquet(output / "quarantine" / "*.parquet")["row_id"].to_list()
    assert sorted(scored + bad) == list(range(3000))
