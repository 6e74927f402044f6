"""A log with any kind of damage ends in a named reason or in one line, never in a wrong feature."""

import gzip
import io
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from pyarrow import parquet

ITEM = {"kind": "categorical", "columns": ["item"]}
PRICE = {"kind": "numeric", "name": "price", "column": "price"}
HASH = {"by": "hash", "column": "user"}
START = datetime(2026, 1, 1, tzinfo=UTC)

Files = dict[str, bytes]


def rows(count: int = 300, seed: int = 1, **replaced: Any) -> pl.DataFrame:
    """Draw rows that features can be built from."""
    draw = random.Random(seed)
    return pl.DataFrame(
        {
            "user": [draw.randrange(60) for _ in range(count)],
            "item": [f"i{draw.randrange(9)}" for _ in range(count)],
            "price": [round(draw.uniform(0, 9), 2) for _ in range(count)],
            "at": [START + timedelta(minutes=n) for n in range(count)],
            "click": [draw.randrange(2) for _ in range(count)],
        }
    ).with_columns(**replaced)


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    file = io.BytesIO()
    frame.write_parquet(file)
    return file.getvalue()


def csv_bytes(frame: pl.DataFrame) -> bytes:
    return frame.select("user", "item", "price", "click").write_csv().encode()


def json_bytes(frame: pl.DataFrame) -> bytes:
    return frame.select("user", "item", "price", "click").write_ndjson().encode()


@pytest.fixture
def ended(
    tmp_path: Path, dataset_of: Callable[..., Any], command: Callable[..., tuple[int, str]]
) -> Callable[..., tuple[int, str]]:
    """Return a function that builds features from files; it returns exit code and stderr."""

    def run(files: Files, *arguments: str, features: Any = (ITEM, PRICE), **more: Any) -> Any:
        folder = tmp_path / "conf" / "dataset" / "logs"
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        kind = Path(next(iter(files)).removesuffix(".gz")).suffix.removeprefix(".")
        source = {"format": kind, "path": "logs", **more.pop("source", {})}
        value = dataset_of(list(features), source=source, split=HASH, **more)
        return command(*arguments, dataset=value)

    return run


def with_line(whole: bytes, number: int, line: bytes) -> bytes:
    """Replace one line of a text, the first being 1."""
    lines = whole.split(b"\n")
    lines[number - 1] = line
    return b"\n".join(lines)


TEXT = csv_bytes(rows())
JSON = json_bytes(rows())
GZIP = gzip.compress(TEXT)
DRAWN = random.Random(3).randbytes(4096)
WHOLE = parquet_bytes(rows(3000))

BROKEN_TEXT: dict[str, tuple[bytes, str]] = {
    "invalid UTF-8": (
        with_line(TEXT, 40, b"1,caf\xe9,2.5,1"),
        "wanted UTF-8, got the byte 0xe9 in line 40",
    ),
    "a value too many": (
        with_line(TEXT, 7, b"1,i2,2.5,1,0"),
        "wanted 4 values, as in the first line, got 5 in line 7",
    ),
    "a value too few": (with_line(TEXT, 7, b"1,i2,2.5"), "got 3 in line 7"),
    "an empty line": (with_line(TEXT, 9, b""), "got 1 in line 9"),
    "cut in a value": (TEXT[:-4], "wanted a line end after the last line"),
    "cut at the end of a value": (
        TEXT[:-1],
        "a line end after the last line, whose lack may mean that the file is cut, got none",
    ),
    "a quote never closed": (
        with_line(TEXT, 5, b'1,"i2,2.5,1'),
        "wanted every quote closed, got one that is not in line 5",
    ),
    "a quote inside a value": (with_line(TEXT, 5, b'1,i"2,2.5,1'), "a quote inside a value"),
    "more after a quote": (
        with_line(TEXT, 5, b'1,"i"2,2.5,1'),
        "to end with its closing quote, got more of it in line 5",
    ),
    "a bare carriage return": (
        with_line(TEXT, 5, b"1,i2,2.5,1\r1,i2,2.5,1"),
        "got a bare \\r in line 5",
    ),
    "a column twice": (
        with_line(TEXT, 1, b"user,item,item,click"),
        "wanted each column once, got 'item' 2 times in line 1",
    ),
    "no name in UTF-8": (with_line(TEXT, 1, b"user,item\xff,price,click"), "in line 1"),
    "nothing": (b"", "wanted a line of column names, got an empty file"),
    "UTF-16": (TEXT.decode().encode("utf-16"), "wanted UTF-8"),
    "column names alone": (
        b"user,item,price,click\n",
        "wanted rows (source.allow_empty: true lets files have none), got none",
    ),
}


@pytest.mark.parametrize("name", BROKEN_TEXT)
def test_broken_csv_is_named_with_its_file_and_line(name: str, ended: Any, tmp_path: Path) -> None:
    broken, wanted = BROKEN_TEXT[name]

    code, error = ended({"a.csv": TEXT, "b.csv": broken})

    assert code == 2
    assert error.count("\n") == 1
    assert "b.csv: " in error
    assert wanted in error
    assert not (tmp_path / "out" / "tensors").exists()


BROKEN_FILES: dict[str, tuple[Files, str]] = {
    "gzip cut short": (
        {"a.csv": TEXT, "b.csv.gz": GZIP[: len(GZIP) // 2]},
        "b.csv.gz: wanted a whole file, got Truncated compressed stream",
    ),
    "parquet cut short": ({"a.parquet": WHOLE[:-100]}, "a.parquet: wanted parquet rows"),
    "parquet of no bytes": ({"a.parquet": WHOLE, "b.parquet": b""}, "b.parquet: wanted parquet"),
    "parquet overwritten in the middle": (
        {"a.parquet": WHOLE[:200] + DRAWN + WHOLE[200 + len(DRAWN) :]},
        "wanted parquet rows",
    ),
    "parquet without rows": (
        {"a.parquet": WHOLE, "day=2/b.parquet": parquet_bytes(rows(0))},
        "day=2/b.parquet: wanted rows (source.allow_empty: true lets files have none), got none",
    ),
    "JSON with a broken line": (
        {"a.ndjson": with_line(JSON, 8, b'{"user":1,"item":')},
        "a.ndjson: wanted one JSON object in each line, got Expecting value",
    ),
    "JSON that is no object": ({"a.ndjson": with_line(JSON, 8, b"[1]")}, "a list in line 8"),
    "JSON cut short": ({"a.ndjson": JSON[:-20]}, " in line 300"),
    "JSON of other bytes": (
        {"a.ndjson": with_line(JSON, 8, b'{"user":1,"item":"\xff"}')},
        "wanted UTF-8, got the byte 0xff in line 8",
    ),
    "JSON of no bytes": ({"a.ndjson": JSON, "b.ndjson": b""}, "b.ndjson: wanted rows"),
    "a type that changes in JSON": (
        {"a.ndjson": JSON, "b.ndjson": json_bytes(rows(user=pl.lit("u1")))},
        "wanted 'user' as int64, got string in b.ndjson",
    ),
    "a type that changes in parquet": (
        {"a.parquet": WHOLE, "b.parquet": parquet_bytes(rows(item=pl.lit(7)))},
        "wanted 'item' as string, got int64 in b.parquet",
    ),
    "a type that changes in CSV": (
        {"a.csv": TEXT, "b.csv": csv_bytes(rows(user=pl.lit("u1")))},
        "b.csv: wanted csv rows of the types found or declared",
    ),
    "a column that is not in all files": (
        {"a.parquet": WHOLE, "b.parquet": parquet_bytes(rows().rename({"item": "sku"}))},
        "wanted a column of b.parquet (it has user, sku,",
    ),
    "an integer beyond int64": (
        {"a.parquet": parquet_bytes(rows(item=pl.lit(2**64 - 1, pl.UInt64)))},
        "18446744073709551615",
    ),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_is_named(name: str, ended: Any, tmp_path: Path) -> None:
    files, wanted = BROKEN_FILES[name]

    code, error = ended(files)

    assert code == 2
    assert error.count("\n") == 1, error
    assert wanted in error
    assert not (tmp_path / "out" / "tensors").exists()


def test_times_and_plain_integers_are_not_mixed(ended: Any) -> None:
    as_numbers = rows(at=pl.col("at").dt.epoch("s"))
    files = {"a.parquet": parquet_bytes(rows()), "b.parquet": parquet_bytes(as_numbers)}

    code, error = ended(files, features=[ITEM, {"kind": "numeric", "columns": ["at"]}])

    assert code == 2
    assert "wanted 'at' as dates and times, got numbers or text in b.parquet" in error


def test_text_in_parquet_that_is_no_utf8_is_refused(ended: Any, tmp_path: Path) -> None:
    table = rows().drop("item").to_arrow()
    text = b"\xff" * len(table)
    offsets = pa.array(range(len(table) + 1), pa.int32()).buffers()[1]
    items = pa.Array.from_buffers(pa.string(), len(table), [None, offsets, pa.py_buffer(text)])
    file = io.BytesIO()
    parquet.write_table(table.append_column("item", items), file)

    code, error = ended({"a.parquet": file.getvalue()})

    assert code == 2
    assert "invalid UTF-8" in error
    assert error.count("\n") == 1


def test_columns_twice_in_parquet_are_refused(ended: Any) -> None:
    table = rows().to_arrow()
    file = io.BytesIO()
    parquet.write_table(table.append_column("item", table["item"]), file)

    code, error = ended({"a.parquet": file.getvalue()})

    assert code == 2
    assert "'item' has more than one occurrence" in error


def test_files_without_rows_are_let_in_where_the_dataset_says_so(
    ended: Any, tmp_path: Path
) -> None:
    files = {"a.csv": b"user,item,price,click\n", "b.csv": TEXT}

    assert ended(files, source={"allow_empty": True}) == (0, "")
    kept = pl.read_parquet(tmp_path / "out" / "prepared" / "train" / "*.parquet")
    assert kept.schema["price"] == pl.Float32


def test_a_byte_order_mark_and_mixed_line_ends_change_nothing(ended: Any, tmp_path: Path) -> None:
    lines = TEXT.split(b"\n")
    mixed = b"\xef\xbb\xbf" + b"".join(
        line + (b"\r\n" if number % 2 else b"\n") for number, line in enumerate(lines[:-1])
    )
    found = []
    for text in (TEXT, mixed):
        assert ended({"a.csv": text}, "overwrite=true") == (0, "")
        found.append(pl.read_parquet(tmp_path / "out" / "prepared" / "train" / "*.parquet"))

    assert found[0].equals(found[1])
