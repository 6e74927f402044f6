"""Where logs can lie and in which form: folders of partitions, NDJSON, columns held to be alike."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.dataset.checked import Entry, Faults
from pipelines.dataset.roles import Source
from pipelines.dataset.source import read_source
from pipelines.logs.locations import find
from pipelines.logs.log_columns import check_same_columns, column_types
from pipelines.logs.log_files import open_logs
from pipelines.logs.logs import ORIGINAL, count_rows, identity, scan_file
from pipelines.rows.row_rules import RowRules, Rule, list_rule, time_rule
from recsys_moe.errors import RequestError

ITEM = {"kind": "categorical", "columns": ["item"]}


def source_of(kind: str = "parquet", path: str = "logs", **more: Any) -> Source:
    """A source of one pattern."""
    settings: dict[str, Any] = {"null_values": (), "types": {}, **more}
    return Source(format=kind, patterns={"all": (path,)}, **settings)  # type: ignore[arg-type]


def read(source: Source, folder: Path, *names: str) -> list[tuple[Any, ...]]:
    """All rows of a source as typed, in order."""
    faults = Faults("dataset")
    logs = open_logs(source, folder, faults)
    columns = column_types(source, logs, {name: name for name in names}, faults)
    faults.raise_any()
    rows: list[tuple[Any, ...]] = []
    for log in logs:
        found = scan_file(source, log, columns).select(names).collect().rows()
        assert len(found) == count_rows(source, log)
        rows += found
    return rows


def write(folder: Path, files: dict[str, dict[str, list[Any]]]) -> None:
    """Write columns as parquet files."""
    for name, columns in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(columns).write_parquet(folder / name)


def test_folders_named_for_a_key_are_columns_where_the_file_has_none(tmp_path: Path) -> None:
    write(
        tmp_path / "logs",
        {
            "dt=2026-10-02/place=7/b.parquet": {"a": [3]},
            "dt=2026-10-01/place=-5/b.parquet": {"a": [1, 2]},
            "dt=2026-10-01/place=__HIVE_DEFAULT_PARTITION__/a.parquet": {"a": [0]},
            "dt=a%20b%3Dc/place=07/c.parquet": {"a": [4], "place": [9]},
        },
    )

    assert read(source_of(), tmp_path, "a", "dt", "place") == [
        (1, "2026-10-01", -5),
        (2, "2026-10-01", -5),
        (0, "2026-10-01", None),
        (3, "2026-10-02", 7),
        (4, "a b=c", 9),
    ]


def test_declared_types_hold_for_keys_of_folders(tmp_path: Path) -> None:
    write(tmp_path / "logs", {"dt=2026-10-01/n=7/a.parquet": {"a": [1]}})
    source = source_of(types={"dt": "datetime", "n": "string"})

    assert read(source, tmp_path, "dt", "n") == [(1_790_812_800_000_000, "7")]
    assert read(source_of(types={"n": "float32"}), tmp_path, "n") == [(7.0,)]


def test_one_folder_that_is_no_integer_makes_all_text(tmp_path: Path) -> None:
    write(tmp_path / "logs", {f"n={n}/a.parquet": {"a": [1]} for n in ("1", "02", "x")})

    assert read(source_of(), tmp_path, "n") == [("02",), ("1",), ("x",)]


@pytest.mark.parametrize("path", ["logs", "logs/*/*.parquet", "logs/**/*.parquet", "logs/day=*"])
def test_what_others_keep_beside_data_is_no_data(path: str, tmp_path: Path) -> None:
    write(tmp_path / "logs", {"day=1/a.parquet": {"a": [1]}, "day=2/b.parquet": {"a": [2]}})
    if "parquet" not in path:
        write(tmp_path / "logs", {"day=1/_temporary/c.parquet": {"a": [3]}})
        write(tmp_path / "logs", {"day=2/.d.parquet": {"a": [4]}})

    assert read(source_of(path=path), tmp_path, "a", "day") == [(1, 1), (2, 2)]


@pytest.mark.parametrize("kind", ["parquet", "csv", "ndjson"])
def test_signs_of_globs_in_names_of_files_are_plain_signs(kind: str, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for number, name in enumerate(("a[1]*", "a1", "b?", "bb")):
        frame = pl.DataFrame({"a": [number]})
        getattr(frame, f"write_{kind}")(tmp_path / "logs" / f"{name}.{kind}")

    found = read(source_of(kind), tmp_path, "a")
    assert found == [(1,), (0,), (2,), (3,)]


def test_json_is_read_like_parquet_of_the_same_rows(tmp_path: Path) -> None:
    rows = [
        {"a": 1, "b": "x", "c": 1.5, "d": [1, None], "e": True},
        {"a": None, "b": "", "c": 2, "d": [], "e": False},
        {"b": "é", "d": None, "extra": 1, "a": 3},
    ]
    kinds = {"a": pl.Int64, "b": pl.String, "c": pl.Float64, "d": pl.List(pl.Int64)}
    frame = pl.DataFrame(rows, schema={**kinds, "e": pl.Boolean})
    (tmp_path / "json").mkdir()
    text = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "json" / "a.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "logs").mkdir()
    frame.write_parquet(tmp_path / "logs" / "a.parquet")

    names = ("a", "b", "c", "d", "e")
    found = read(source_of("ndjson", "json"), tmp_path, *names)
    assert found == read(source_of(), tmp_path, *names)


def test_types_of_json_can_be_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.logs.log_files.INFERRED_ROWS", 1)
    (tmp_path / "a.ndjson").write_text('{"a":1,"t":"2026-10-01","p":3}\n{"a":2,"t":"","p":3.5}\n')
    types = {"a": "string", "t": "datetime", "p": "float32"}

    source = source_of("ndjson", "a.ndjson", types=types, null_values=("",))
    with pytest.raises(pl.exceptions.InvalidOperationError):
        read(source, tmp_path, "t")
    assert read(source, tmp_path, "a", "p") == [("1", 3.0), ("2", 3.5)]


DIFFERENT: dict[str, tuple[dict[str, list[Any]], str]] = {
    "missing": ({"a": [1]}, "got no 'b' in b.parquet"),
    "added": ({"a": [1], "b": ["x"], "c": [1]}, "got 'c' in b.parquet, which is not there"),
    "retyped": ({"a": [1.5], "b": ["x"]}, "got 'a' of type Float64 in b.parquet and Int64 there"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_columns_that_differ_are_named_where_they_must_not(name: str, tmp_path: Path) -> None:
    columns, wanted = DIFFERENT[name]
    write(tmp_path / "logs", {"a.parquet": {"a": [1], "b": ["x"]}, "b.parquet": columns})
    source, faults = source_of(same_columns=True), Faults("dataset")

    check_same_columns(source, open_logs(source, tmp_path, faults), faults)

    assert len(faults.lines) == 1
    assert "wanted the columns of a.parquet in every file (source.same_columns)" in faults.lines[0]
    assert wanted in faults.lines[0]


def test_originals_have_the_same_columns_and_types_in_all_files(tmp_path: Path) -> None:
    write(
        tmp_path / "logs",
        {
            "day=1/a.parquet": {"a": [1], "b": ["x"], "c": [[1]]},
            "day=2/b.parquet": {"a": ["z"], "d": [1.5], "c": [["y"]]},
        },
    )
    source = source_of()
    logs = open_logs(source, tmp_path, Faults("dataset"))
    kept = pl.concat([scan_file(source, log, {}) for log in logs]).collect()

    kept = kept.select(pl.col(f"^{ORIGINAL}.*$").name.replace(ORIGINAL, ""))
    kinds = {"day": pl.Int64, "a": pl.String, "b": pl.String, "d": pl.Float64}
    assert dict(kept.schema) == kinds
    assert kept.select("a", "b", "d", "day").rows() == [("1", "x", None, 1), ("z", None, 1.5, 2)]


def test_a_file_is_its_bytes_and_its_folders(tmp_path: Path) -> None:
    def found() -> list[dict[str, Any]]:
        return [identity(log) for log in open_logs(source_of(), tmp_path, Faults("dataset"))]

    write(tmp_path / "logs", {"day=1/a.parquet": {"a": [1]}})
    first = found()
    write(tmp_path / "logs", {"day=1/a.parquet": {"a": [2]}})
    second = found()
    (tmp_path / "logs" / "day=1").rename(tmp_path / "logs" / "day=2")

    assert first != second != found() != first


def test_an_unknown_scheme_offers_those_there_are() -> None:
    with pytest.raises(RequestError, match=r"s3, gs, abfs, abfss, got s4://"):
        find("s4://bucket/a.parquet", Path("/"), [".parquet"])


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"format": "parquett"}, "Did you mean 'parquet'?"),
        ({"format": "csv", "snapshot": 3}, "no such entry where the format is csv, got 3"),
        ({"format": "delta", "path": ["a", "b"]}, "source.path: wanted one table"),
        ({"format": "ndjson", "separator": ";"}, "no such entry where the format is ndjson"),
        ({"format": "delta", "snapshot": "x"}, "source.snapshot: wanted a whole number"),
        ({"max_list": 0}, "source.max_list: wanted a whole number from 1"),
        ({"same_columns": 1}, "source.same_columns: wanted true or false"),
    ],
)
def test_wrong_entries_of_a_source_are_named(given: dict[str, Any], wanted: str) -> None:
    faults = Faults("dataset")
    value = {"format": "parquet", "path": "logs", **given}

    read_source(Entry(value, "source", faults))

    assert len(faults.lines) == 1
    assert wanted in faults.lines[0]


def test_logs_of_events_are_tables_with_snapshots_of_their_own() -> None:
    faults = Faults("dataset")
    value = {
        "format": "delta",
        "impressions": "shown",
        "snapshot": 4,
        "clicks": "clicks",
        "conversions": {"path": "sales", "snapshot": 9},
    }

    source = read_source(Entry(value, "source", faults))

    assert faults.lines == []
    assert [source.snapshot, *(log.source.snapshot for log in source.events)] == [4, None, 9]


def test_rules_are_bits_and_their_words_are_what_plain_python_finds() -> None:
    number = pl.col("n")
    rules = [Rule(f"not over {k}", number > k) for k in range(64)]
    frame = pl.DataFrame({"n": [None, *range(66)]})
    held = RowRules(rules)

    found = frame.lazy().select("n", mask=held.mask()).with_columns(w=held.words(pl.col("mask")))

    for n, mask, words in found.collect(engine="streaming").rows():
        broken = [] if n is None else [f"not over {k}" for k in range(64) if not n > k]
        assert held.reasons(mask) == broken
        assert words == ("; ".join(broken) or None)
    with pytest.raises(RequestError, match="rules of rows: wanted at most 64, got 65"):
        RowRules([*rules, rules[0]])


def test_bounds_of_times_and_lists() -> None:
    end = 7_258_118_400_000_000  # date +%s --date 2200-01-01Z, in microseconds
    times = {"t": [-1, 0, end - 1, end, None]}
    lists = {"t": [[], [1] * 3, [1] * 4, None, [None] * 4]}

    held = pl.DataFrame(times).select(time_rule("t").sound).to_series()
    assert held.to_list() == [False, True, True, False, None]
    held = pl.DataFrame(lists).select(list_rule("t", 3).sound).to_series()
    assert held.to_list() == [True, True, False, None, False]


def test_features_from_json_in_partitions(
    tmp_path: Path,
    frame: Callable[..., pl.DataFrame],
    dataset_of: Callable[..., dict[str, Any]],
    command: Callable[..., tuple[int, str]],
) -> None:
    rows = frame(400, 1).select("user", "item", "click", "fold")
    for (fold,), part in rows.group_by("fold", maintain_order=True):
        folder = tmp_path / "conf" / "dataset" / "logs" / f"fold={fold}"
        folder.mkdir(parents=True)
        part.drop("fold").write_ndjson(folder / "a.ndjson")
    value = dataset_of(
        [ITEM],
        source={"format": "ndjson", "path": "logs"},
        split={"by": "column", "column": "fold", "train": ["a"], "valid": ["b"], "test": ["c"]},
    )

    assert command(dataset=value) == (0, "")
    for split, fold in (("train", "a"), ("valid", "b"), ("test", "c")):
        kept = pl.read_parquet(tmp_path / "out" / "prepared" / split / "*.parquet")
        assert kept["item"].to_list() == rows.filter(pl.col("fold") == fold)["item"].to_list()
