"""The judgement of CSV by its bytes, held against Python's own reader."""

import csv
import io
import random
from pathlib import Path

import polars as pl
import pytest

from pipelines.logs.text_files import check_csv
from recsys_moe.errors import RequestError


@pytest.mark.parametrize("chunk", [1, 3, 7, 1 << 20])
def test_sound_csv_has_the_rows_that_python_and_polars_find(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.logs.text_files._CHUNK_BYTES", chunk)
    draw, path = random.Random(chunk), tmp_path / "a.csv"
    for _ in range(30):
        width = draw.randrange(1, 5)
        table = [
            ["".join(draw.choices('ab,;"\n\r é€', k=draw.randrange(5))) for _ in range(width)]
            for _ in range(draw.randrange(1, 20))
        ]
        with path.open("w", encoding="utf-8", newline="") as file:
            ends = draw.choice(["\n", "\r\n"])
            writer = csv.writer(file, lineterminator=ends, quoting=csv.QUOTE_ALL)
            writer.writerow([f"c{n}" for n in range(width)])
            writer.writerows(table)

        assert check_csv(str(path), ",") == len(table)
        assert pl.scan_csv(path, infer_schema_length=0).collect().height == len(table)


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
def test_any_change_of_a_quote_or_separator_is_seen_or_python_reads_the_same_shape(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.logs.text_files._CHUNK_BYTES", chunk)
    sound = b'a,b\n1,"x, ""y"""\n2,"z\nw"\n3,\n'
    path, refused = tmp_path / "a.csv", 0
    for at in range(len(sound)):
        for sign in b'",x\n\r\xff':
            changed = sound[:at] + bytes([sign]) + sound[at + 1 :]
            path.write_bytes(changed)
            try:
                count = check_csv(str(path), ",")
            except RequestError:
                refused += 1
                continue
            read = list(csv.reader(io.StringIO(changed.decode(), newline=""), strict=True))
            assert {len(row) for row in read} == {len(read[0])}
            assert count == len(read) - 1

    assert refused > 100


@pytest.mark.parametrize("chunk", range(1, 14))
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b'a,b\n1,"y"x\n2,3\n', "got more of it in line 2"),
        (b'a,b\n1,y"x"\n2,3\n', "got a quote inside a value in line 2"),
        (b"a,b\n1,y\r2,3\n4,5\n", r"got a bare \\r in line 2"),
        (b'a,b\n1,2\n3,"4\n5,6\n', "got one that is not in line 3"),
        (b"a,b\n1,2\n3,\xc3\n", "got the byte 0xc3 in line 3"),
    ],
)
def test_a_fault_is_seen_wherever_a_file_is_cut_into_chunks(
    chunk: int, text: bytes, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.logs.text_files._CHUNK_BYTES", chunk)
    (tmp_path / "a.csv").write_bytes(text)

    with pytest.raises(RequestError, match=wanted):
        check_csv(str(tmp_path / "a.csv"), ",")
