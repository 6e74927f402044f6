"""Delta and Iceberg tables: the rows of a snapshot, and what plain files would get wrong."""

import base64
import json
import struct
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestWriterV2,
    write_manifest_list,
)
from pyiceberg.table import Table
from pyroaring import BitMap

from pipelines.dataset.checked import Faults
from pipelines.dataset.roles import Source
from pipelines.logs.log_columns import column_types
from pipelines.logs.log_files import open_logs
from pipelines.logs.logs import count_rows, identity, scan_file
from recsys_moe.errors import RequestError


def source_of(kind: str, path: str, snapshot: int | None = None, **types: str) -> Source:
    """A source of one table."""
    return Source(
        format=kind,  # type: ignore[arg-type]
        patterns={"all": (path,)},
        null_values=(),
        types=types,
        snapshot=snapshot,
    )


def read(source: Source, folder: Path, *names: str) -> list[tuple[Any, ...]]:
    """All rows of a source as typed, sorted."""
    faults = Faults("dataset")
    logs = open_logs(source, folder, faults)
    columns = column_types(source, logs, {name: name for name in names}, faults)
    faults.raise_any()
    rows: list[tuple[Any, ...]] = []
    for log in logs:
        found = scan_file(source, log, columns).select(names).collect().rows()
        assert len(found) == count_rows(source, log)
        rows += found
    return sorted(rows, key=repr)


def days(*rows: tuple[int, str, int]) -> pa.Table:
    """A table of an integer, a place and a day of October."""
    numbers, places, october = zip(*rows, strict=True)
    dates = [date(2026, 10, day) for day in october]
    return pa.table({"a": list(numbers), "place": list(places), "dt": dates})


def micros(day: int) -> int:
    return (date(2026, 10, day) - date(1970, 1, 1)).days * 86_400_000_000


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """A table partitioned by place and day, whose second version has a column more."""
    path = tmp_path / "shop"
    write_deltalake(path, days((1, "a b", 1), (2, "c/d%", 2)), partition_by=["place", "dt"])
    more = days((3, "a b", 3)).append_column("b", pa.array(["new"]))
    write_deltalake(path, more, mode="append", schema_mode="merge")
    return path


def test_a_delta_table_has_its_partitions_as_columns_and_null_where_a_column_is_newer(
    delta: Path,
) -> None:
    assert read(source_of("delta", "shop"), delta.parent, "a", "place", "dt", "b") == [
        (1, "a b", micros(1), None),
        (2, "c/d%", micros(2), None),
        (3, "a b", micros(3), "new"),
    ]


def test_a_delta_table_is_read_as_it_was(delta: Path) -> None:
    DeltaTable(delta).delete("a = 1")

    assert read(source_of("delta", "shop", 0), delta.parent, "a") == [(1,), (2,)]
    assert read(source_of("delta", "shop", 1), delta.parent, "a") == [(1,), (2,), (3,)]
    assert read(source_of("delta", "shop"), delta.parent, "a") == [(2,), (3,)]


def test_the_snapshot_is_part_of_what_a_file_is(delta: Path) -> None:
    found = []
    for version in (0, 1, None):
        logs = open_logs(source_of("delta", "shop", version), delta.parent, Faults("dataset"))
        found.append([identity(log) for log in logs])

    assert {file["snapshot"] for file in found[0]} == {0}
    assert found[0] != found[1]
    assert found[1] == found[2]


@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_a_table_that_is_not_there_is_named(kind: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"{tmp_path}/none: wanted .*, got "):
        open_logs(source_of(kind, "none"), tmp_path, Faults("dataset"))


def test_a_version_that_is_not_there_is_named(delta: Path) -> None:
    with pytest.raises(RequestError, match=r"shop: wanted a delta table, got .*9"):
        open_logs(source_of("delta", "shop", 9), delta.parent, Faults("dataset"))


def test_a_table_is_not_read_as_a_folder_of_parquet(delta: Path) -> None:
    with pytest.raises(RequestError, match=r"wanted source\.format delta for a table of that kind"):
        open_logs(source_of("parquet", "shop"), delta.parent, Faults("dataset"))


def _deletion_vector(*rows: int) -> dict[str, Any]:
    """An inline deletion vector of Delta: a magic number and one bitmap, in Z85."""
    content = struct.pack("<iqi", 1681511377, 1, 0) + BitMap(rows).serialize()
    content += b"\0" * (-len(content) % 4)
    python, z85 = (
        b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~",
        b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#",
    )
    text = base64.b85encode(content).translate(bytes.maketrans(python, z85)).decode()
    where = {"storageType": "i", "pathOrInlineDv": text}
    return {**where, "sizeInBytes": len(content), "cardinality": len(rows)}


@pytest.mark.parametrize("deleted", [(), (1,)])
def test_delta_rows_that_are_only_marked_as_deleted_are_refused(
    deleted: tuple[int, ...], tmp_path: Path
) -> None:
    path = tmp_path / "shop"
    write_deltalake(path, days((1, "x", 1), (2, "y", 2)))
    log = path / "_delta_log"
    lines = (log / f"{0:020}.json").read_text().splitlines()
    add = next(json.loads(line)["add"] for line in lines if "add" in json.loads(line))
    if deleted:
        add["deletionVector"] = _deletion_vector(*deleted)
    protocol: dict[str, Any] = {"minReaderVersion": 3, "minWriterVersion": 7}
    protocol |= {key: ["deletionVectors"] for key in ("readerFeatures", "writerFeatures")}
    actions = [{"protocol": protocol}, {"add": add}]
    (log / f"{1:020}.json").write_text("\n".join(json.dumps(action) for action in actions))

    if not deleted:
        assert read(source_of("delta", "shop"), tmp_path, "a") == [(1,), (2,)]
        return
    with pytest.raises(RequestError, match="no deletion vectors: compact the table first, got"):
        read(source_of("delta", "shop"), tmp_path)


@pytest.fixture
def iceberg(tmp_path: Path) -> Table:
    """A table of two snapshots, the second with a column more."""
    catalog = SqlCatalog("c", uri=f"sqlite:///{tmp_path}/c.db", warehouse=f"file://{tmp_path}/w")
    catalog.create_namespace("n")
    table = catalog.create_table("n.shop", schema=days((1, "x", 1)).schema)
    table.append(days((1, "x", 1), (2, "y", 2)))
    more = days((3, "z", 3)).append_column("b", pa.array(["new"]))
    with table.update_schema() as update:
        update.union_by_name(more.schema)
    table.append(more)
    return table


def folder_of(table: Table) -> Path:
    return Path(table.location().removeprefix("file://"))


def test_an_iceberg_table_is_read_by_its_folder_or_its_metadata_now_or_as_it_was(
    iceberg: Table,
) -> None:
    folder = folder_of(iceberg)
    all_rows = [(1, micros(1), None), (2, micros(2), None), (3, micros(3), "new")]
    first = iceberg.snapshots()[0].snapshot_id

    assert read(source_of("iceberg", folder.name), folder.parent, "a", "dt", "b") == all_rows
    metadata = source_of("iceberg", iceberg.metadata_location.removeprefix("file://"))
    assert read(metadata, folder.parent, "a", "dt", "b") == all_rows
    assert read(source_of("iceberg", folder.name, first), folder.parent, "a") == [(1,), (2,)]
    with pytest.raises(RequestError, match=rf"one of its snapshots \({first}, \d+\), got 7"):
        read(source_of("iceberg", folder.name, 7), folder.parent, "a")


def test_an_iceberg_snapshot_is_part_of_what_a_file_is(iceberg: Table) -> None:
    source, folder = source_of("iceberg", "shop"), folder_of(iceberg).parent
    before = [identity(log) for log in open_logs(source, folder, Faults("dataset"))]
    iceberg.append(days((4, "q", 4)).append_column("b", pa.array(["x"])))
    after = [identity(log) for log in open_logs(source, folder, Faults("dataset"))]

    assert before != after
    assert {file["snapshot"] for file in after} == {iceberg.current_snapshot().snapshot_id}


def test_an_iceberg_column_that_was_renamed_is_refused(iceberg: Table) -> None:
    with iceberg.update_schema() as update:
        update.rename_column("place", "site")

    with pytest.raises(RequestError, match="its name in the table, 'site', got 'place'"):
        read(source_of("iceberg", "shop"), folder_of(iceberg).parent)


def test_iceberg_rows_that_are_only_marked_as_deleted_are_refused(iceberg: Table) -> None:
    data = next(iter(iceberg.scan().plan_files())).file
    marks = folder_of(iceberg) / "data" / "deletes.parquet"
    pl.DataFrame({"file_path": [data.file_path], "pos": [0]}).write_parquet(marks)
    delete = DataFile.from_args(
        content=DataFileContent.POSITION_DELETES,
        file_path=f"file://{marks}",
        file_format=FileFormat.PARQUET,
        partition=data.partition,
        record_count=1,
        file_size_in_bytes=marks.stat().st_size,
    )
    commit_delete(iceberg, delete)

    with pytest.raises(RequestError, match="no delete files: compact the table first, got one"):
        open_logs(source_of("iceberg", "shop"), folder_of(iceberg).parent, Faults("dataset"))


class DeleteWriter(ManifestWriterV2):
    """A manifest of deletes, which pyiceberg reads and does not write itself."""

    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


def commit_delete(table: Table, delete: DataFile) -> None:
    """Write the list of the current snapshot's manifests anew, with one of deletes."""
    now, number = table.current_snapshot(), table.current_snapshot().sequence_number
    file = table.io.new_output(f"{table.location()}/metadata/deletes.avro")
    with DeleteWriter(table.spec(), table.schema(), file, now.snapshot_id, "null") as writer:
        added = {"status": ManifestEntryStatus.ADDED, "snapshot_id": now.snapshot_id}
        numbers = {"sequence_number": number, "file_sequence_number": number}
        writer.add_entry(ManifestEntry.from_args(**added, **numbers, data_file=delete))
    manifests = [*now.manifests(table.io), writer.to_manifest_file()]
    listed = table.io.new_output(now.manifest_list + ".new")
    ids = now.snapshot_id, now.parent_snapshot_id, number
    with write_manifest_list(2, listed, *ids, "null") as writer:
        writer.add_manifests(manifests)
    Path(listed.location.removeprefix("file://")).rename(now.manifest_list.removeprefix("file://"))


@pytest.mark.parametrize(("kind", "package"), [("delta", "deltalake"), ("iceberg", "pyiceberg")])
def test_a_library_that_is_not_there_is_named_with_its_extra(
    kind: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "shop" / "metadata").mkdir(parents=True)

    with pytest.raises(RequestError, match=r"source.format: .*pip install 'recsys-moe\[lake\]'"):
        open_logs(source_of(kind, "shop"), tmp_path, Faults("dataset"))


def test_features_are_built_from_a_table_and_a_newer_snapshot_is_another_request(
    tmp_path: Path,
    frame: Callable[..., pl.DataFrame],
    dataset_of: Callable[..., dict[str, Any]],
    command: Callable[..., tuple[int, str]],
) -> None:
    rows = frame(400, 1).select("user", "item", "click")
    path = tmp_path / "conf" / "dataset" / "shop"
    path.parent.mkdir(parents=True)
    write_deltalake(path, rows.to_arrow())
    value = dataset_of(
        [{"kind": "categorical", "columns": ["item"]}],
        source={"format": "delta", "path": "shop"},
        split={"by": "hash", "column": "user"},
    )

    assert command(dataset=value) == (0, "")
    request = tmp_path / "out" / "request.json"
    first = json.loads(request.read_text())
    write_deltalake(path, rows.head(7).to_arrow(), mode="append")
    code, error = command(dataset=value)

    assert code == 2
    assert "files" in error
    value["source"]["snapshot"] = 0
    assert command("overwrite=true", dataset=value) == (0, "")
    assert json.loads(request.read_text())["files"] == first["files"]
    assert first["files"][0]["snapshot"] == 0
