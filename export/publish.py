"""An artifact appears whole or not at all, and nothing of anybody else's is ever touched."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from export.manifest import MANIFEST, Manifest, list_files
from recsys_moe.errors import ArtifactError, RequestError
from recsys_moe.files import sync_folder


def published(output: Path, identity: Mapping[str, Any], *, overwrite: bool) -> Manifest | None:
    """Return the manifest of an artifact that is already what is asked for; None means: build.

    Args:
        output: Where the artifact goes.
        identity: What `identity_of` must say of an artifact that needs no building again.
        overwrite: Whether an artifact of another request, or a damaged one, may be replaced.

    Raises:
        RequestError: The place is taken: by another artifact without `overwrite`, by files that
            no manifest lists, or by something that is not a folder.
    """
    if not output.exists() and not output.is_symlink():
        return None
    if not output.is_dir() or output.is_symlink():
        raise RequestError(f"output={output}", wanted="a folder", got="something else")
    present = {path.name for path in output.iterdir()}
    if not present:
        return None
    if MANIFEST not in present:
        raise RequestError(
            f"output={output}", wanted="a new or empty folder", got="a folder with other files"
        )
    manifest = Manifest.load(output)
    foreign = sorted(list_files(output).keys() - manifest.files.keys())
    if foreign:
        raise RequestError(
            f"output={output}", wanted="an artifact and nothing else", got=f"{foreign[0]!r} in it"
        )
    found = "another artifact"
    try:
        Manifest.verify(output)
        known = identity_of(manifest)
        different = [name for name, value in identity.items() if known[name] != value]
        if not different:
            return manifest
        found = f"an artifact with another {', '.join(different)}"
    except ArtifactError as error:
        found = f"a damaged artifact ({error})"
    if not overwrite:
        raise RequestError(
            f"output={output}",
            wanted="a new folder, the same run again or overwrite=true",
            got=found,
        )
    return None


def identity_of(manifest: Manifest) -> dict[str, Any]:
    """Return what decides whether an artifact must be built again."""
    return {
        "run": manifest.run_digest,
        "feature spec": manifest.spec_digest,
        "tolerance": manifest.parity.tolerance,
        "evaluation": manifest.metrics,
        "version": manifest.code_version,
        "outputs": manifest.outputs,
        "dispatch": manifest.dispatch,
    }


@contextlib.contextmanager
def staging(output: Path) -> Iterator[Path]:
    """Yield an empty folder beside `output` that takes its place when the block ends well.

    The folder is hidden, locked against a second export and emptied of what a killed one left.
    Its files reach the disk before the rename; a former artifact goes only after it.

    Raises:
        RequestError: Another process is building the same artifact.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    place = output.with_name(f".{output.name}.building")
    place.mkdir(exist_ok=True)
    descriptor = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(
                f"output={output}", wanted="one export at a time", got="another one at work"
            ) from None
        fresh, former = place / "new", place / "old"
        if former.exists() and not output.exists():
            former.rename(output)  # killed between the two renames below
        shutil.rmtree(former, ignore_errors=True)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        try:
            yield fresh
            _sync(fresh)
            if output.exists():
                output.rename(former)
            fresh.rename(output)
            sync_folder(output.parent)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            with Path(root, name).open("rb") as handle:
                os.fsync(handle.fileno())
        sync_folder(Path(root))
