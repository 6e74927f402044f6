"""Logs in an object store: a server of S3 on this machine, listed by pyarrow and read by Polars."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import write_deltalake
from pyarrow import fs
from pyiceberg.catalog.sql import SqlCatalog

from pipelines.dataset.checked import Faults
from pipelines.dataset.roles import Source
from pipelines.logs.locations import find
from pipelines.logs.log_columns import column_types
from pipelines.logs.log_files import open_logs
from pipelines.logs.logs import count_rows, identity, scan_file
from recsys_moe.errors import RequestError


@pytest.fixture(scope="module")
def end_point() -> Iterator[str]:
    """Start a server of S3 on a free port; stop it when the tests are done."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as server:
        for _ in range(300):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        server.terminate()


@pytest.fixture
def store(end_point: str, monkeypatch: pytest.MonkeyPatch) -> fs.S3FileSystem:
    """The server's buckets; what Polars and pyarrow need to reach them is in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", end_point)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    system = fs.S3FileSystem(endpoint_override=end_point, allow_bucket_creation=True)
    system.create_dir("logs")
    return system


def put(store: fs.S3FileSystem, path: str, frame: pl.DataFrame) -> None:
    """Write a frame in the format that its name ends in."""
    with store.open_output_stream(path) as file:
        if path.endswith(".parquet"):
            frame.write_parquet(file)
        else:
            frame.write_csv(file) if path.endswith(".csv") else frame.write_ndjson(file)


def read(kind: str, path: str, *names: str) -> list[tuple[Any, ...]]:
    """All rows of a source, in order."""
    source = Source(format=kind, patterns={"all": (path,)}, null_values=(), types={})  # type: ignore[arg-type]
    faults = Faults("dataset")
    logs = open_logs(source, Path("/nowhere"), faults)
    columns = column_types(source, logs, {name: name for name in names}, faults)
    faults.raise_any()
    rows: list[tuple[Any, ...]] = []
    for log in logs:
        found = scan_file(source, log, columns).select(names).collect().rows()
        assert len(found) == count_rows(source, log)
        rows += found
    return rows


@pytest.mark.parametrize("kind", ["parquet", "csv", "ndjson"])
def test_every_format_is_read_from_a_store_with_its_partitions(
    kind: str, store: fs.S3FileSystem
) -> None:
    for day, values in ((2, [3]), (1, [1, 2])):
        put(store, f"logs/{kind} of/day={day}/a [1].{kind}", pl.DataFrame({"a": values}))
    put(store, f"logs/{kind} of/_old/a.{kind}", pl.DataFrame({"a": [9]}))

    for path in (f"{kind} of", f"{kind} of/", f"{kind} of/day=*/*.{kind}", f"{kind} o?/d*"):
        assert read(kind, f"s3://logs/{path}", "a", "day") == [(1, 1), (2, 1), (3, 2)]


def test_a_file_in_a_store_is_its_size_and_its_time(store: fs.S3FileSystem) -> None:
    source = Source(
        format="csv", patterns={"all": ("s3://logs/one.csv",)}, null_values=(), types={}
    )
    found = []
    for values in ([1], [10], [100, 1]):
        put(store, "logs/one.csv", pl.DataFrame({"a": values}))
        found.append([identity(log) for log in open_logs(source, Path("/"), Faults("dataset"))])

    assert found[0] != found[2] != found[1]
    assert found[0][0]["url"] == "s3://logs/one.csv"


def test_what_is_not_in_a_store_is_named(store: fs.S3FileSystem) -> None:
    with pytest.raises(RequestError, match=r"'s3://logs/none.*, where there is none"):
        read("csv", "s3://logs/none/*.csv", "a")


def test_a_store_that_refuses_is_named(
    store: fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

        with pytest.raises(RequestError, match=r"s3://logs/a.csv: wanted a store that can be"):
            find("s3://logs/a.csv", Path("/"), [".csv"])


def test_features_are_built_from_a_store_as_from_a_folder(
    store: fs.S3FileSystem,
    tmp_path: Path,
    frame: Callable[..., pl.DataFrame],
    dataset_of: Callable[..., dict[str, Any]],
    command: Callable[..., tuple[int, str]],
) -> None:
    rows = frame(400, 1).select("user", "item", "click")
    put(store, "logs/shop/a.parquet", rows)
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    rows.write_parquet(tmp_path / "conf" / "dataset" / "a.parquet")
    found = []
    for path in ("a.parquet", "s3://logs/shop/*.parquet"):
        value = dataset_of(
            [{"kind": "categorical", "columns": ["item"]}],
            source={"format": "parquet", "path": path},
            split={"by": "hash", "column": "user"},
        )
        assert command("overwrite=true", dataset=value) == (0, "")
        found.append(pl.read_parquet(tmp_path / "out" / "prepared" / "train" / "*.parquet"))

    assert found[0].equals(found[1])
    files = json.loads((tmp_path / "out" / "request.json").read_text())["files"]
    assert files[0]["url"] == "s3://logs/shop/a.parquet"


def test_tables_are_read_from_a_store(store: fs.S3FileSystem, tmp_path: Path) -> None:
    rows = pl.DataFrame({"a": [1, 2], "day": [5, 6]}).to_arrow()
    write_deltalake("s3://logs/delta", rows, partition_by=["day"])
    settings = {"s3.endpoint": os.environ["AWS_ENDPOINT_URL"], "warehouse": "s3://logs/iceberg"}
    catalog = SqlCatalog("c", uri=f"sqlite:///{tmp_path}/c.db", **settings)
    catalog.create_namespace("n")
    catalog.create_table("n.shop", schema=rows.schema).append(rows)

    assert sorted(read("delta", "s3://logs/delta", "a", "day")) == [(1, 5), (2, 6)]
    assert read("iceberg", "s3://logs/iceberg/n/shop", "a", "day") == [(1, 5), (2, 6)]
