"""Laws of runners: whoever runs the files and buckets, the same bytes and the same errors come."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml

from pipelines import build
from pipelines.events import buckets
from recsys_moe.errors import RequestError
from recsys_moe.runners import LocalRunner, RayRunner

Contents = Callable[[Path], dict[str, bytes]]
Command = Callable[..., tuple[int, str]]
ROOT = Path(__file__).parents[2]
START, HOUR = 1_767_225_600_000_000, 3_600_000_000
FILES, FILE_ROWS = 3, 800
VALUE: dict[str, Any] = {
    "name": "shop",
    "source": {
        "format": "parquet",
        "impressions": "shown-*.parquet",
        "join": "request",
        "clicks": "clicks-*.parquet",
        "conversions": "sales.parquet",
        "until": "2026-03-01",
    },
    "split": {"by": "time", "column": "at", "valid_share": 0.1, "test_share": 0.1},
    "keys": ["request"],
    "unique_keys": True,
    "user": "user",
    "tasks": [
        {"name": "click", "label": {"log": "clicks"}},
        {"name": "sale", "label": {"log": "conversions", "attribution_hours": 30}},
    ],
    "histories": [
        {"name": "seen", "of": "user", "events": "click", "columns": ["item"], "last": 4}
    ],
    "aggregates": [
        {"name": "rate", "of": "item", "kind": "rate", "target": "click"},
        {"name": "spent", "of": "user", "kind": "mean", "target": "price", "refresh": "daily"},
    ],
    "features": [
        {"kind": "categorical", "columns": ["item", "user"]},
        {"kind": "categorical", "columns": ["seen_item"], "table": "item", "max_len": 4},
        {"kind": "numeric", "columns": ["price", "rate", "spent"]},
    ],
}


def write_logs(folder: Path) -> None:
    """Write impressions in several files, some of them twice, with clicks and sales."""
    draw = np.random.default_rng(5)
    size = FILES * FILE_ROWS
    request = np.arange(size)
    request[draw.choice(size, 20, replace=False)] = draw.integers(0, size, 20)
    at = START + np.sort(draw.integers(0, 10 * 24 * HOUR, size))
    shown = pl.DataFrame(
        {
            "request": request,
            "at": pl.Series(at).cast(pl.Datetime("us", "UTC")),
            "user": draw.integers(0, 60, size),
            "item": [f"i{n}" for n in draw.zipf(1.6, size) % 40],
            "price": draw.random(size),
        }
    )
    clicked = draw.random(size) < 0.3
    sold = clicked & (draw.random(size) < 0.4)
    first = shown.unique("request", keep="first", maintain_order=True)
    events = shown.filter(pl.Series(clicked)).select("request", ts="at")
    events = events.join(first.select("request", first="at"), on="request")
    events = events.select("request", pl.max_horizontal("ts", "first").alias("ts"))
    sales = events.join(shown.filter(pl.Series(sold)).select("request"), on="request", how="semi")
    for number in range(FILES):
        part = shown.slice(number * FILE_ROWS, FILE_ROWS)
        part.write_parquet(folder / f"shown-{number}.parquet", row_group_size=300)
    events.head(300).write_parquet(folder / "clicks-0.parquet")
    events.slice(300).write_parquet(folder / "clicks-1.parquet")
    sales.with_columns(pl.col("ts") + pl.duration(hours=2)).write_parquet(folder / "sales.parquet")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    write_logs(folder)
    return folder


@pytest.fixture(scope="module")
def ray_runner() -> Iterator[RayRunner]:
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{Path(__file__).parent}")  # of the workers
        runner = RayRunner(workers=2)
        yield runner
        ray.shutdown()


@pytest.fixture
def built(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Path]:
    """Return a function that builds in several buckets with a runner."""
    monkeypatch.setattr(buckets, "ROWS_PER_BUCKET", 700)

    def make(runner: Any) -> Path:
        output = tmp_path / type(runner).__name__
        build.build(VALUE, folder=logs, output=output, runner=runner, max_quarantine_share=0.1)
        return output

    return make


class MortalRunner(RayRunner):
    """In every stage a worker dies of kill -9: amid its work, or in the next when it is done."""

    def __init__(self, ray_runner: RayRunner, graves: Path) -> None:
        super().__init__(workers=ray_runner.workers)
        self.graves = graves
        self.stages: list[str] = []

    def map(
        self, function: Callable[[Any, Any], Any], shared: Any, units: Sequence[Any]
    ) -> Iterator[Any]:
        graves, name = self.graves, f"{len(self.stages)}-{function.__name__}"
        self.stages.append(name)
        amid = len(self.stages) % 2 == 0

        def mortal(shared: Any, numbered: tuple[int, Any]) -> Any:
            number, unit = numbered
            dies = number == 0 and not (graves / name).exists()
            if dies:
                (graves / name).touch()
                if amid:
                    threading.Timer(0.003, os.kill, (os.getpid(), signal.SIGKILL)).start()
            result = function(shared, unit)
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return super().map(mortal, shared, list(enumerate(units)))


def test_workers_write_the_same_bytes_as_one_process(
    built: Callable[[Any], Path], ray_runner: RayRunner, contents: Contents
) -> None:
    one = contents(built(LocalRunner()))

    assert contents(built(ray_runner)) == one

    assert {"feature_spec.json", "lookup/rate.parquet", "report.json"} < one.keys()
    assert any(path.startswith("quarantine/") for path in one)  # the duplicates
    assert sum(path.startswith("prepared/train/") for path in one) == FILES


@pytest.mark.slow
def test_a_killed_worker_leaves_no_trace(
    built: Callable[[Any], Path], ray_runner: RayRunner, contents: Contents, tmp_path: Path
) -> None:
    one = contents(built(LocalRunner()))
    graves = tmp_path / "graves"
    graves.mkdir()
    mortal = MortalRunner(ray_runner, graves)

    assert contents(built(mortal)) == one

    assert sorted(mortal.stages) == sorted(grave.name for grave in graves.iterdir())
    assert len(mortal.stages) > 8


def test_the_error_of_a_worker_is_that_of_one_process(
    logs: Path, tmp_path: Path, ray_runner: RayRunner, command: Command
) -> None:
    for file in logs.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    _tear(tmp_path / "shown-1.parquet", column=1)
    source = {
        key: f"{tmp_path}/{path}" if str(path).endswith(".parquet") else path
        for key, path in VALUE["source"].items()
    }
    list(ray_runner.map(_double, 2, [1]))  # the command's runner joins this cluster

    answers = [
        command(f"runner={runner}", dataset={**VALUE, "source": source})
        for runner in ("local", "ray")
    ]

    assert answers[0] == answers[1]
    code, line = answers[0]
    assert code == 2
    assert line.count("\n") == 1
    assert "recsys-moe-features: " in line


def _tear(path: Path, column: int) -> None:
    """Overwrite what one column holds in one row group; the footer does not show it."""
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(column)
    whole = bytearray(path.read_bytes())
    begin = chunk.data_page_offset
    whole[begin + 60 : begin + 160] = bytes(100)
    path.write_bytes(bytes(whole))


def _double(shared: int, unit: int) -> int:
    return shared * unit


def test_results_come_in_the_order_of_the_units(ray_runner: RayRunner) -> None:
    assert list(ray_runner.map(_double, 2, range(7))) == [0, 2, 4, 6, 8, 10, 12]
    assert list(ray_runner.map(_double, 2, [])) == []


@pytest.mark.parametrize("workers", [0, -1, True, 1.5])
def test_a_runner_has_workers(workers: Any) -> None:
    with pytest.raises(RequestError, match=r"runner\.workers: wanted a whole number of at least 1"):
        RayRunner(workers=workers)


def test_no_workers_is_a_wrong_request(command: Command, logs: Path) -> None:
    value = {**VALUE, "source": {**VALUE["source"], "impressions": str(logs / "shown-*.parquet")}}
    code, line = command("runner=ray", "runner.workers=0", dataset=value)
    assert code == 2
    assert "runner.workers: wanted a whole number of at least 1, got 0" in line


def test_without_ray_the_extra_is_named(logs: Path, tmp_path: Path) -> None:
    conf = tmp_path / "conf" / "dataset"
    conf.mkdir(parents=True)
    source = {
        key: f"{logs}/{path}" if str(path).endswith(".parquet") else path
        for key, path in VALUE["source"].items()
    }
    (conf / "shop.yaml").write_text(yaml.safe_dump({**VALUE, "source": source}))
    hidden = "import sys; sys.modules['ray'] = None; import pipelines.build as b; b.main()"
    arguments = ["dataset=shop", "runner=ray", f"output={tmp_path / 'out'}"]

    done = subprocess.run(
        [sys.executable, "-c", hidden, "--config-dir", str(conf.parent), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HYDRA_FULL_ERROR": "0"},
        capture_output=True,
        encoding="utf-8",
    )

    assert done.returncode == 2
    wanted = "runner=ray: wanted the extra ray: pip install 'recsys-moe[ray]', got no package ray"
    assert wanted in done.stderr
    assert done.stderr.count("\n") == 1
