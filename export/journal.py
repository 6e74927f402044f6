"""Whose the output folder is, and which units in it are finished, across crashes.

A unit counts as finished when its line is in `journal.jsonl` and its files are what the line says.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from export.parts import PARTS, QUARANTINE, part_path, quarantine_path
from export.units import Unit
from recsys_moe.errors import RequestError
from recsys_moe.files import REQUEST, claim, read_json, sha256_file, sync_folder

JOURNAL, SUCCESS = "journal.jsonl", "_SUCCESS.json"
STAGE = "score"

_TEMPORARY = ".*.tmp"


@contextmanager
def claimed(output: Path, request: dict[str, Any], *, overwrite: bool) -> Iterator[None]:
    """Hold an output folder for one request and one process.

    Raises:
        RequestError: It belongs to another request, to another running job or to somebody else,
            or it cannot be written.
    """
    with _writing(output):
        _check_ours(output)
        output.mkdir(parents=True, exist_ok=True)
        folder = os.open(output, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(
                f"output={output}", wanted="one job at a time", got="another that is running in it"
            ) from None
        with _writing(output):
            claim(output, request, overwrite=overwrite)
            for place in (output, output / PARTS, output / QUARANTINE):
                place.mkdir(exist_ok=True)
                for stale in place.glob(_TEMPORARY):
                    stale.unlink()
            sync_folder(output)
        with _writing(output):
            yield
    finally:
        os.close(folder)


def is_finished(output: Path, request: dict[str, Any]) -> bool:
    """Say whether a folder claims to hold all of a request's predictions."""
    known = output / REQUEST
    return (output / SUCCESS).exists() and known.exists() and read_json(known) == request


class Journal:
    """The finished units of an output folder, one fsynced line each."""

    def __init__(self, output: Path) -> None:
        """Read the journal; the torn last line of a crash is cut off, a damaged one ignored."""
        self._output, self._path = output, output / JOURNAL
        self._lines: dict[str, dict[str, Any]] = {}
        self.duplicate_keys: int | None = None
        content = self._path.read_bytes() if self._path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(self._path, len(whole))
        for text in whole.splitlines():
            with suppress(ValueError):
                self._take(json.loads(text))

    def finished(self, units: Sequence[Unit]) -> set[str]:
        """Return the names of the units whose files are there, to the byte."""
        return {unit.name for unit in units if self._intact(unit)}

    def lines(self, units: Sequence[Unit]) -> list[dict[str, Any]]:
        """Return the line of each unit that has one, in input order."""
        return [self._lines[unit.name] for unit in units if unit.name in self._lines]

    def append(self, line: dict[str, Any]) -> None:
        """Add a line; it is on the disk when this returns."""
        self._take(line)
        with self._path.open("ab") as handle:
            handle.write(json.dumps(line, sort_keys=True).encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())
        sync_folder(self._output)

    def _take(self, line: Any) -> None:
        if isinstance(line, dict) and "unit" in line:
            self._lines[line["unit"]] = line
        elif isinstance(line, dict) and "duplicate_keys" in line:
            self.duplicate_keys = line["duplicate_keys"]

    def _intact(self, unit: Unit) -> bool:
        line = self._lines.get(unit.name)
        if line is None:
            return False
        try:
            quarantine = line["quarantine"]
            return (
                line["rows"] == unit.rows == line["scored"] + line["quarantined"]
                and (quarantine is None) == (line["quarantined"] == 0)
                and sum(line["reasons"].values()) >= line["quarantined"]
                and _holds(part_path(self._output, unit.name), line["part"])
                and (
                    quarantine is None
                    or _holds(quarantine_path(self._output, unit.name), quarantine)
                )
            )
        except (KeyError, TypeError, AttributeError):
            return False


def _holds(path: Path, record: dict[str, Any]) -> bool:
    """Say whether a file has the size and digest that were recorded of it."""
    return (
        path.is_file()
        and path.stat().st_size == record["bytes"]
        and sha256_file(path) == record["sha256"]
    )


def _check_ours(output: Path) -> None:
    """Refuse a folder that holds anything a scoring job does not write, whatever is asked."""
    if not output.is_dir():
        return
    known = {REQUEST, JOURNAL, SUCCESS, PARTS, QUARANTINE}
    strange = sorted(
        path.name
        for path in output.iterdir()
        if path.name not in known and not path.match(_TEMPORARY)
    )
    started = output / REQUEST
    if not strange and started.exists():
        request = read_json(started)
        if not isinstance(request, dict) or request.get("stage") != STAGE:
            strange = [f"{REQUEST} of another command"]
    if strange:
        raise RequestError(
            f"output={output}",
            wanted="a new folder or one of a scoring job",
            got=f"a folder with other files ({strange[0]})",
        )


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Turn a full disk or a lack of permission into one line that names the folder."""
    try:
        yield
    except OSError as error:
        raise RequestError(
            f"output={output}",
            wanted="a folder that can be written",
            got=f"{error.strerror or error} ({error.filename or output})",
        ) from error


def clear(output: Path) -> None:
    """Take the mark of completeness away before anything below it changes."""
    with suppress(FileNotFoundError):
        (output / SUCCESS).unlink()
        sync_folder(output)
