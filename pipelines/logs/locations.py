"""Where raw files are: paths, folders, globs and object-store URLs, as lists of files by name.

Polars reads the files; pyarrow lists them, as Polars expands no folder of mixed files as we do.
Both take credentials and end points from the environment.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pyarrow import fs

from recsys_moe.errors import RequestError

SCHEMES = ("s3", "gs", "abfs", "abfss")
_GLOB = re.compile(r"[*?\[]")
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_TABLES = {"_delta_log": "delta", "metadata": "iceberg"}


@dataclass(frozen=True, slots=True)
class Located:
    """A raw file: its path or URL, and what folders named `key=value` above it say."""

    location: str
    keys: dict[str, str | None]


def is_url(location: str) -> bool:
    """Say whether a location is a URL and not a path.

    >>> is_url("s3://bucket/logs"), is_url("logs/day=1")
    (True, False)
    """
    return re.match(r"[a-z][a-z0-9+.-]*://", location) is not None


def as_glob(location: str) -> str:
    """Return the glob that one location alone matches: of NDJSON, Polars reads globs only.

    >>> as_glob("logs/a [1].ndjson")
    'logs/a [[]1].ndjson'
    """
    bracket = r"[\[]" if is_url(location) else "[[]"  # of a URL it makes a regular expression
    return _GLOB.sub(lambda sign: bracket if sign[0] == "[" else f"[{sign[0]}]", location)


def file_system(location: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of an absolute path or a URL, and the path on it.

    Raises:
        RequestError: The URL is of a scheme that is not read.
    """
    if not is_url(location):
        return fs.LocalFileSystem(), location
    scheme, _, path = location.partition("://")
    if scheme not in SCHEMES:
        wanted = "a path or a URL of " + ", ".join(SCHEMES)
        raise RequestError(location, wanted=wanted, got=f"{scheme}://", choices=SCHEMES)
    if scheme == "s3":
        return _s3(path.partition("/")[0]), path
    if scheme == "gs":
        return fs.GcsFileSystem(), path
    return fs.FileSystem.from_uri(location)  # type: ignore[no-any-return]


def _s3(bucket: str) -> fs.S3FileSystem:
    """Return the file system of a bucket; pyarrow alone would not look for an end point."""
    asked = os.environ
    end_point = asked.get("AWS_ENDPOINT_URL_S3") or asked.get("AWS_ENDPOINT_URL")
    region = asked.get("AWS_REGION") or asked.get("AWS_DEFAULT_REGION")
    if not end_point and not region:
        region = fs.resolve_s3_region(bucket)
    anonymous = asked.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true")
    return fs.S3FileSystem(endpoint_override=end_point, region=region, anonymous=anonymous)


def absolute(pattern: str, folder: Path) -> str:
    """Return a path, glob or URL from where relative paths start; `file://` becomes a path."""
    if pattern.startswith("file://"):
        pattern = unquote(pattern.removeprefix("file://"))
    return (
        pattern.rstrip("/") if is_url(pattern) else os.path.normpath(Path.cwd() / folder / pattern)
    )


def find(pattern: str, folder: Path, endings: Sequence[str]) -> list[Located]:
    """Return the files that a path, folder, glob or URL names, in name order.

    A folder stands for all files below it with one of some endings, but for those whose name, or
    a folder's, begins with `_` or `.`: what other programs keep beside their data.

    Args:
        pattern: What the dataset file says.
        folder: Where relative paths start.
        endings: What file names of the wanted format end in, `.csv`.

    Raises:
        RequestError: The store cannot be listed, or the folder is a table of another format.
    """
    whole = absolute(pattern, folder)
    try:
        found = sorted(set(_files(whole, endings, is_glob=_GLOB.search(pattern) is not None)))
    except OSError as error:
        raise RequestError(whole, wanted="a store that can be listed", got=brief(error)) from error
    start = "" if is_url(whole) else f"{os.path.normpath(Path.cwd() / folder)}/"
    return [Located(name, _keys(name.removeprefix(start))) for name in found]


def _files(whole: str, endings: Sequence[str], *, is_glob: bool) -> Iterator[str]:
    system, path = file_system(whole)
    prefix = whole.removesuffix(path)
    kind = system.get_file_info(path).type
    if kind == fs.FileType.File:
        yield whole
    elif kind == fs.FileType.Directory:
        _refuse_table(system, path, whole)
        for below in _below(system, path):
            if _is_data(below.removeprefix(path).strip("/").split("/"), endings):
                yield prefix + below
    elif is_glob and prefix:
        parts = path.split("/")
        fixed = next(n for n, part in enumerate(parts) if _GLOB.search(part))
        base = "/".join(parts[:fixed])
        for below in _below(system, base):
            if _matches(below.removeprefix(base).strip("/").split("/"), parts[fixed:], endings):
                yield prefix + below
    elif is_glob:
        anchor = Path(Path(path).anchor)
        for match in anchor.glob(Path(path).relative_to(anchor).as_posix()):
            yield from _files(str(match), endings, is_glob=False)


def _below(system: fs.FileSystem, path: str) -> list[str]:
    """Return all files below a folder; none if there is no such folder."""
    selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
    return [info.path for info in system.get_file_info(selector) if info.is_file]


def _is_data(parts: Sequence[str], endings: Sequence[str]) -> bool:
    """Say whether a file below a folder is one of its data, by the parts of its path there."""
    hidden = any(part.startswith(("_", ".")) for part in parts)
    return parts[-1].endswith(tuple(endings)) and not hidden


def _matches(parts: Sequence[str], patterns: Sequence[str], endings: Sequence[str]) -> bool:
    """Say whether a glob matches a file or a folder above it; `**` is any number of folders."""
    if not patterns:
        return not parts or _is_data(parts, endings)
    rest = patterns[1:]
    if patterns[0] == "**":
        return any(_matches(parts[n:], rest, endings) for n in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], rest, endings)


def _refuse_table(system: fs.FileSystem, path: str, whole: str) -> None:
    """Refuse a folder that a table format keeps: rows that the table has dropped lie there too."""
    for name, table in _TABLES.items():
        mark = system.get_file_info(f"{path}/{name}")
        if mark.type != fs.FileType.Directory:
            continue
        if table == "delta" or any(".metadata.json" in file for file in _below(system, mark.path)):
            wanted = f"source.format {table} for a table of that kind"
            raise RequestError(whole, wanted=wanted, got=f"the folder {name} in it")


def _keys(path: str) -> dict[str, str | None]:
    """Return what folders named `key=value` say.

    >>> _keys("logs/dt=2026-10-01/place=a%20b/part-0.parquet")
    {'dt': '2026-10-01', 'place': 'a b'}
    """
    keys: dict[str, str | None] = {}
    for part in path.split("/")[:-1]:
        key, sign, value = part.partition("=")
        if key and sign:
            keys[unquote(key)] = None if value in ("", _NO_VALUE) else unquote(value)
    return keys


def stamp(location: str) -> dict[str, Any]:
    """Return the size and the time of change of a file in a store."""
    system, path = file_system(location)
    info = system.get_file_info(path)
    return {"size": info.size, "modified_ns": info.mtime_ns}


def brief(error: Exception) -> str:
    """Return the first line of what an error says, without its full stop."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
