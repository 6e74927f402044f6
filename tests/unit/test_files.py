"""A folder belongs to one request, whatever moment a job was killed at."""

from pathlib import Path

import pytest

from recsys_moe.errors import RequestError
from recsys_moe.files import REQUEST, claim, finish

FIRST, SECOND = {"rows": 1}, {"rows": 2}


def test_overwriting_empties_the_folder_and_keeps_it_for_a_lock_may_be_on_it(
    tmp_path: Path,
) -> None:
    claim(tmp_path, FIRST, overwrite=False)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "part.parquet").touch()
    finish(tmp_path, {})
    before = tmp_path.stat().st_ino

    assert not claim(tmp_path, SECOND, overwrite=True)

    assert tmp_path.stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == [REQUEST]


def test_a_job_killed_while_claiming_may_claim_again(tmp_path: Path) -> None:
    (tmp_path / f".{REQUEST}.4711.tmp").write_text("{")

    assert not claim(tmp_path, FIRST, overwrite=False)


def test_a_folder_with_somebody_elses_files_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").touch()

    with pytest.raises(RequestError, match="a folder with other files"):
        claim(tmp_path, FIRST, overwrite=True)
    assert (tmp_path / "thesis.docx").exists()


def test_the_same_request_is_done_once_finished(tmp_path: Path) -> None:
    assert not claim(tmp_path, FIRST, overwrite=False)
    assert not claim(tmp_path, FIRST, overwrite=False)
    finish(tmp_path, {})
    assert claim(tmp_path, FIRST, overwrite=False)
