"""Files that are there whole or not at all, and folders that belong to one request."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recsys_moe.errors import RequestError

REQUEST = "request.json"
SUCCESS = "_SUCCESS"
_PARTIAL = ".*.tmp"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, as UTF-8."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN, no Infinity), whole."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or torn one is a wrong request."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(str(path), wanted="an existing file", got="none") from None
    except ValueError as error:
        raise RequestError(str(path), wanted="a JSON file", got=f"{error}") from None


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Return the SHA-256 of a plain value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def is_done(output: Path, request: dict[str, Any], *, overwrite: bool) -> bool:
    """Say whether a request is already done in a folder; nothing is written.

    The request (configuration and input digests) lies in `request.json`. The same request may
    continue in a started folder; another one is refused unless `overwrite`. A folder that holds
    files but no `request.json` is never touched; temporary files of a kill do not count.

    Raises:
        RequestError: The folder belongs to another request, or to somebody else.
    """
    known = output / REQUEST
    if output.exists() and not output.is_dir():
        raise RequestError(f"output={output}", wanted="a folder", got="a file")
    if known.exists():
        started = read_json(known)
        if started == request:
            return (output / SUCCESS).exists()
        if not overwrite:
            raise RequestError(
                f"output={output}",
                wanted="a new folder, the same request again or overwrite=true",
                got=f"a folder started with another {_difference(started, request)}",
            )
    elif output.exists() and not all(path.match(".*.tmp") for path in output.iterdir()):
        raise RequestError(
            f"output={output}", wanted="a new or empty folder", got="a folder with other files"
        )
    return False


def claim(output: Path, request: dict[str, Any], *, overwrite: bool) -> bool:
    """Make a folder this request's own, emptied of another's if `overwrite`; True if it is done."""
    if is_done(output, request, overwrite=overwrite):
        return True
    known = output / REQUEST
    if known.exists() and read_json(known) != request:
        _empty(output)
    output.mkdir(parents=True, exist_ok=True)
    write_json(known, request)
    return False


def finish(output: Path, summary: dict[str, Any]) -> None:
    """Mark a claimed folder as done."""
    write_json(output / SUCCESS, summary)


def _empty(output: Path) -> None:
    """Empty a folder, the mark of success first and the request last, in case of a crash.

    The folder itself stays: a lock may be held on it.
    """
    paths = output.iterdir()
    for path in sorted(paths, key=lambda p: (p.name == REQUEST, not p.name.startswith(SUCCESS))):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _difference(started: dict[str, Any], request: dict[str, Any]) -> str:
    """Name the entries in which two requests differ, deepest first where both are mappings."""
    names = []
    for key in sorted(started.keys() | request.keys()):
        old, new = started.get(key), request.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            names.append(f"{key}.{_difference(old, new)}")
        else:
            names.append(key)
    return ", ".join(names)
