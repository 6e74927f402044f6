"""An artifact is what its manifest says, or it is refused before anything loads it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from export.manifest import Manifest
from recsys_moe.errors import ArtifactError
from recsys_moe.files import sha256_file


def flip_a_bit(folder: Path) -> None:
    path = folder / "weights.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder: Path) -> None:
    os.truncate(folder / "weights.bin", 100)


def add_a_file(folder: Path) -> None:
    (folder / "sample" / "extra.txt").write_text("x")


def link_a_file(folder: Path) -> None:
    target = folder.with_name("elsewhere.bin")
    (folder / "weights.bin").rename(target)
    (folder / "weights.bin").symlink_to(target)


def link_a_folder(folder: Path) -> None:
    target = folder.with_name("elsewhere")
    (folder / "sample").rename(target)
    (folder / "sample").symlink_to(target)


def name_a_file_twice(folder: Path) -> None:
    os.link(folder / "weights.bin", folder.with_name("twin.bin"))


def drop_a_file(folder: Path) -> None:
    (folder / "core.onnx").unlink()


def drop_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def tear_the_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:100])


def rewrite(folder: Path, **entries: object) -> None:
    path = folder / "manifest.json"
    value = json.loads(path.read_text()) | entries
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def promise_the_future(folder: Path) -> None:
    rewrite(folder, schema_version=2)


def add_an_entry(folder: Path) -> None:
    rewrite(folder, colour="blue")


def reformat_the_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text())))


@pytest.mark.parametrize(
    ("tamper", "line"),
    [
        (flip_a_bit, "weights.bin: wanted sha256"),
        (truncate, "weights.bin: wanted .* bytes, got 100"),
        (add_a_file, "sample/extra.txt: wanted no such file"),
        (link_a_file, "weights.bin: wanted a regular file, got a symbolic link"),
        (link_a_folder, "sample: wanted no such file"),
        (name_a_file_twice, "weights.bin: wanted a file of one name, got 2 hard links"),
        (drop_a_file, "core.onnx: wanted the file, got none"),
        (drop_the_manifest, "wanted the folder of a complete artifact, got no manifest.json"),
        (tear_the_manifest, "manifest.json: wanted a JSON file"),
        (promise_the_future, "wanted schema_version 1, got 2"),
        (add_an_entry, "got an unknown entry 'colour'"),
        (reformat_the_manifest, "wanted the manifest as it was exported"),
    ],
)
def test_tampering_is_refused_in_one_line(
    tamper: Callable[[Path], None], line: str, artifact: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    Manifest.verify(copy)

    tamper(copy)

    with pytest.raises(ArtifactError, match=line) as error:
        Manifest.verify(copy)
    assert "\n" not in str(error.value)


def test_a_manifest_survives_writing_and_reading(artifact: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(artifact)

    manifest.save(tmp_path)

    assert Manifest.load(tmp_path) == manifest
    assert manifest.digest == sha256_file(artifact / "manifest.json")
    assert manifest.name == "odd-mmoe"
    assert manifest.outputs == ("p_click", "p_conversion", "p_like", "p_click_and_conversion")


def test_no_folder_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="got no such folder"):
        Manifest.verify(tmp_path / "none")
