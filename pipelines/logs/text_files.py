"""Text files judged byte by byte before Polars reads them: what it would guess is refused here.

Polars fills short rows with nulls, renames the second of two equal columns, and does not say in
which line a fault is. One pass over a file counts its rows and finds such faults with their line.
"""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from pyarrow import NativeFile

from pipelines.logs.locations import brief, file_system
from recsys_moe.errors import RequestError

_CHUNK_BYTES = 1 << 20
_LF, _CR, _QUOTE = 10, 13, 34
_BOM = b"\xef\xbb\xbf"
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd"}


class _LineError(Exception):
    """What is wrong in a line."""

    def __init__(self, line: int, wanted: str, got: str) -> None:
        super().__init__(got)
        self.line, self.wanted, self.got = line, wanted, got


@contextmanager
def _opened(location: str) -> Iterator[NativeFile]:
    """Open a file of text, decompressed; what is wrong in it becomes one line.

    Raises:
        RequestError: It cannot be read, is cut short, or has a fault in one of its lines.
    """
    try:
        system, path = file_system(location)
        with system.open_input_stream(path, compression=None) as file:
            kind = _COMPRESSED.get(file.read(2))
        with system.open_input_stream(path, compression=kind) as file:
            yield file
    except _LineError as fault:
        got = f"{fault.got} in line {fault.line:,}"
        raise RequestError(location, wanted=fault.wanted, got=got) from fault
    except OSError as error:
        raise RequestError(location, wanted="a whole file", got=brief(error)) from error


def csv_header(location: str, separator: str) -> list[str]:
    """Return the names of the columns of a CSV file.

    Raises:
        RequestError: There are none, one comes twice, or they are not UTF-8.
    """
    with _opened(location) as file:
        head = file.read(_CHUNK_BYTES).removeprefix(_BOM)
        if not head.strip():
            raise RequestError(location, wanted="a line of column names", got="an empty file")
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(head)
        names = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
        if any("\ufffd" in name for name in names):
            raise _LineError(1, "UTF-8", "other bytes")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise _LineError(1, "each column once", f"{twice[0]!r} {len(twice)} times")
    return names


def check_csv(location: str, separator: str) -> int:
    """Return the number of rows of a CSV file, if it is sound.

    Raises:
        RequestError: A line has more or fewer values than the first, a quote is not closed or
            stands inside a value without quotes, a line ends in a bare carriage return, the bytes
            are not UTF-8, or the last line has no end.
    """
    with _opened(location) as file:
        lines, decoder = _Lines(separator), codecs.getincrementaldecoder("utf-8")()
        first = True
        while chunk := file.read(_CHUNK_BYTES):
            _check_utf8(decoder, chunk, lines.line)
            lines.add(np.frombuffer(chunk.removeprefix(_BOM) if first else chunk, np.uint8))
            first = False
        lines.close()
        return max(lines.records - 1, 0)


def _check_utf8(decoder: codecs.IncrementalDecoder, chunk: bytes, line: int) -> None:
    try:
        decoder.decode(chunk)
    except UnicodeDecodeError as error:
        line += error.object.count(b"\n", 0, error.start)
        raise _LineError(line, "UTF-8", f"the byte 0x{error.object[error.start]:02x}") from error


class _Lines:
    """Counts the records of a CSV file chunk by chunk; each has as many values as the first.

    `line` is the number of the line that the next byte is in, `records` that of complete records.
    """

    def __init__(self, separator: str) -> None:
        self.separator = ord(separator)
        self.may_open = np.isin(np.arange(256), (self.separator, _LF, _QUOTE))
        self.may_follow = self.may_open | (np.arange(256) == _CR)
        self.line, self.records = 1, 0
        self.width: int | None = None
        self.values = 0  # that have ended, in the record so far
        self.is_quoted = False
        self.quoted_since = 0
        self.last = _LF
        self.bare = False  # the last byte is a carriage return that a line feed must follow

    def add(self, bytes_N: npt.NDArray[np.uint8]) -> None:
        """Judge the next bytes of the file."""
        if not len(bytes_N):
            return
        is_end_N = bytes_N == _LF
        is_mark_N = is_end_N | (bytes_N == self.separator)
        quotes = np.flatnonzero(bytes_N == _QUOTE)
        returns = np.flatnonzero(bytes_N == _CR)
        if len(quotes) or self.is_quoted or self.last == _QUOTE:
            quoted_N = self._quoted(bytes_N, quotes)
            is_mark_N &= ~quoted_N
            returns = returns[~quoted_N[returns]]
        if self.bare and not is_end_N[0]:
            returns = np.zeros(1, np.intp)
        elif len(returns):
            self.bare = returns[-1] == len(bytes_N) - 1
            within = returns[:-1] if self.bare else returns
            returns = within[~is_end_N[within + 1]]
        else:
            self.bare = False
        if len(returns):
            raise self._fault(bytes_N, returns[0], "lines that end in \\n or \\r\\n", "a bare \\r")
        self._count(bytes_N, np.flatnonzero(is_mark_N))
        self.line += int(np.count_nonzero(is_end_N))
        self.last = int(bytes_N[-1])

    def _quoted(
        self, bytes_N: npt.NDArray[np.uint8], quotes: npt.NDArray[np.intp]
    ) -> npt.NDArray[np.bool_]:
        """Return which bytes lie inside quotes; a quote opens at the start of a value only."""
        # Only whether a count is odd matters: it may wrap.
        count_N = np.cumsum(bytes_N == _QUOTE, dtype=np.uint8)
        quoted_N: npt.NDArray[np.bool_] = ((count_N & 1) == 1) ^ self.is_quoted
        opens = quoted_N[quotes]
        opening, closing = quotes[opens], quotes[~opens]
        before = np.where(opening > 0, bytes_N[opening - 1], self.last)
        sound = self.may_open[before]
        if not sound.all():
            wanted = "values with quotes inside to be quoted, and those doubled"
            raise self._fault(bytes_N, opening[~sound][0], wanted, "a quote inside a value")
        after = closing[closing + 1 < len(bytes_N)] + 1
        if not self.is_quoted and self.last == _QUOTE:
            after = np.concatenate([[0], after])
        wrong = after[~self.may_follow[bytes_N[after]]]
        if len(wrong):
            wanted = "a value to end with its closing quote"
            raise self._fault(bytes_N, wrong[0], wanted, "more of it")
        if quoted_N[-1] and len(opening):
            self.quoted_since = self.line + int(np.count_nonzero(bytes_N[: opening[-1]] == _LF))
        self.is_quoted = bool(quoted_N[-1])
        return quoted_N

    def _count(self, bytes_N: npt.NDArray[np.uint8], marks: npt.NDArray[np.intp]) -> None:
        """Count the values of each record by the marks that end them: separators, line ends."""
        ends = np.flatnonzero(bytes_N[marks] == _LF)
        values = np.diff(ends, prepend=-1)
        if len(ends):
            values[0] += self.values
            self.width = self.width or int(values[0])
            wrong = np.flatnonzero(values != self.width)
            if len(wrong):
                wanted = f"{self.width} values, as in the first line"
                at = marks[ends[wrong[0]]]
                raise self._fault(bytes_N, at, wanted, f"{values[wrong[0]]}")
            self.values = 0
            self.records += len(ends)
        self.values += len(marks) - (int(ends[-1]) + 1 if len(ends) else 0)

    def close(self) -> None:
        """Judge the end of the file."""
        if self.is_quoted:
            raise _LineError(self.quoted_since, "every quote closed", "one that is not")
        if self.last != _LF:
            wanted = "a line end after the last line, whose lack may mean that the file is cut"
            raise _LineError(self.line, wanted, "none")

    def _fault(self, bytes_N: npt.NDArray[np.uint8], at: int, wanted: str, got: str) -> _LineError:
        line = self.line + int(np.count_nonzero(bytes_N[:at] == _LF))
        return _LineError(line, wanted, got)


def check_objects(location: str) -> bool:
    """Look in a file of NDJSON for a line that is no JSON object; say whether it has any object.

    Raises:
        RequestError: There is such a line.
    """
    with _opened(location) as file:
        line, kept, found = 0, b"", False
        while chunk := file.read(_CHUNK_BYTES):
            *whole, kept = (kept + chunk).split(b"\n")
            for text in whole:
                line += 1
                found |= _is_object(text, line)
        return _is_object(kept, line + 1) or found


def _is_object(text: bytes, line: int) -> bool:
    if not text.strip():
        return False
    wanted = "one JSON object in each line"
    try:
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise _LineError(line, "UTF-8", f"the byte 0x{text[error.start]:02x}") from error
    except ValueError as error:
        raise _LineError(line, wanted, brief(error)) from error
    if not isinstance(value, dict):
        raise _LineError(line, wanted, f"a {type(value).__name__}")
    return True
