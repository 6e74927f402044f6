"""An artifact appears whole, once, and never in place of somebody's files."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export.manifest import Manifest
from export.publish import identity_of, published, staging
from export.to_onnx import export_run
from recsys_moe.errors import RequestError


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "copy"))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-m", "export.to_onnx", *arguments],
        cwd=cwd, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_exports_the_same_bytes_quietly(
    run: Path, artifact: Path, tmp_path: Path
) -> None:
    done = command(f"run={run}", "output=again", cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert all(line.startswith("[") for line in done.stdout.splitlines())
    assert contents(tmp_path / "again") == contents(artifact)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_a_wrong_request_is_one_line_and_two(tmp_path: Path) -> None:
    done = command("run=nowhere", "output=x", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stderr.startswith("recsys-moe-export: run=")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_same_request_again_changes_nothing(run: Path, copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}

    manifest = export_run(run, copy, tolerance=1e-5, overwrite=False)

    assert manifest == Manifest.load(copy)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_another_request_needs_overwrite(copy: Path) -> None:
    identity = identity_of(Manifest.load(copy)) | {"run": "0" * 64}

    with pytest.raises(RequestError, match="an artifact with another run"):
        published(copy, identity, overwrite=False)
    assert published(copy, identity, overwrite=True) is None


def test_a_damaged_artifact_needs_overwrite(copy: Path) -> None:
    identity = identity_of(Manifest.load(copy))
    (copy / "weights.bin").write_bytes(b"")

    with pytest.raises(RequestError, match="a damaged artifact"):
        published(copy, identity, overwrite=False)
    assert published(copy, identity, overwrite=True) is None


def test_foreign_files_are_never_touched(copy: Path, tmp_path: Path) -> None:
    identity = identity_of(Manifest.load(copy))
    (copy / "notes.txt").write_text("mine")
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    file.write_text("mine")

    for output in (copy, folder, file):
        with pytest.raises(RequestError):
            published(output, identity, overwrite=True)


def test_an_artifact_takes_the_place_of_the_former_whole(copy: Path) -> None:
    with staging(copy) as folder:
        (folder / "new.txt").write_text("new")
        assert (copy / "manifest.json").exists()

    assert contents(copy) == {"new.txt": b"new"}
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_a_failed_build_leaves_the_former_artifact(copy: Path) -> None:
    before = contents(copy)

    with pytest.raises(ZeroDivisionError), staging(copy) as folder:
        (folder / "new.txt").write_text(str(1 / 0))

    assert contents(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_what_a_killed_export_left_is_cleared(tmp_path: Path) -> None:
    output, place = tmp_path / "demo", tmp_path / ".demo.building"
    for name in ("new", "old"):
        (place / name).mkdir(parents=True)
        (place / name / "file").write_text(name)

    with staging(output) as folder:  # killed between two renames: the former comes back first
        assert contents(output) == {"file": b"old"}
        assert contents(folder) == {}

    assert contents(output) == {}


def test_two_exports_to_one_place_are_refused(tmp_path: Path) -> None:
    place = tmp_path / ".demo.building"
    place.mkdir()
    descriptor = os.open(place, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)

    with pytest.raises(RequestError, match="another one at work"), staging(tmp_path / "demo"):
        pass
    os.close(descriptor)
