"""Rate and memory of the features command, beside DuckDB doing the same job.

    python benchmarks/features_speed.py [--rows 1000000 5000000 20000000] [--repeats 3]
        [--memory-limit 4GB] [--threads 2] [--folder DIR] [--table benchmarks/features_speed.md]

Prints the tables of `benchmarks/features_speed.md` and writes them there. For each size the funnel
is simulated once, which is not measured; then both build its features, in turn, each in a process
of its own. Seconds are from its start to its end, Python's own start included; memory is the most
that was resident. Outputs are removed as soon as they are measured.

What DuckDB does is `benchmarks/funnel_sql.py`; `tests/pipelines/test_duckdb_oracle.py` holds both
to the same labels, histories, vocabularies and codes.
"""

import argparse
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import yaml
from line import markdown

ROOT = Path(__file__).parents[1]
LOGS = ("impressions", "clicks", "conversions")
STAGES = {"joined": "join", "looked": "past", "prepared": "prepare", "fitted": "fit"}
SIMULATE = """
import sys
from pathlib import Path
from pipelines.simulated.funnel import simulate
simulate(Path(sys.argv[1]), rows=int(sys.argv[2]), seed=1, correlation=0.5)
"""


@dataclass(frozen=True)
class Measured:
    """One process: wall seconds, the most memory in MB, and seconds by stage."""

    seconds: float
    memory: float
    stages: dict[str, float] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 5_000_000, 20_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-limit", default="4GB", help="of DuckDB")
    parser.add_argument("--threads", type=int, default=2, help="of both engines")
    parser.add_argument("--folder", type=Path, help="where logs and outputs go for a while")
    parser.add_argument("--table", type=Path, default=ROOT / "benchmarks" / "features_speed.md")
    options = parser.parse_args()
    found: dict[int, dict[str, list[Measured]]] = {}
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for rows in sorted(options.rows):
            found[rows] = _size(Path(folder), rows, options)
    text = _text(found, options)
    print(text)
    options.table.write_text(text, encoding="utf-8")


def _size(folder: Path, rows: int, options: argparse.Namespace) -> dict[str, list[Measured]]:
    """Simulate once and measure both engines in turn."""
    logs, output = folder / "logs", folder / "output"
    _measured([sys.executable, "-c", SIMULATE, str(logs), str(rows)], options.threads)
    dataset = _write_dataset(folder / "conf", logs)
    ours = [sys.executable, "-m", "pipelines.build", "--config-dir", str(folder / "conf")]
    ours += [f"dataset={dataset}", f"output={output}"]
    theirs = [sys.executable, str(ROOT / "benchmarks" / "funnel_sql.py"), str(logs), str(output)]
    theirs += [f"--memory-limit={options.memory_limit}", f"--threads={options.threads}"]
    found: dict[str, list[Measured]] = {"pipeline": [], "DuckDB": []}
    for _ in range(options.repeats):
        for engine, command in (("pipeline", ours), ("DuckDB", theirs)):
            found[engine].append(_measured(command, options.threads))
            shutil.rmtree(output)
            print(f"{rows:,} {engine}: {found[engine][-1]}", file=sys.stderr)
    shutil.rmtree(logs)
    return found


def _write_dataset(conf: Path, logs: Path) -> str:
    """Write the funnel's dataset file, but for logs that are there already; return its name."""
    value = yaml.safe_load((ROOT / "conf" / "dataset" / "funnel.yaml").read_text())
    for name in ("rows", "seed", "correlation"):
        del value[name]
    value["source"] = {"format": "parquet", "until": "2026-01-15"}
    value["source"] |= {name: f"{logs}/{name}/*.parquet" for name in LOGS}
    (conf / "dataset").mkdir(parents=True, exist_ok=True)
    (conf / "dataset" / "funnel_logs.yaml").write_text(yaml.safe_dump(value))
    return "funnel_logs"


def _measured(command: Sequence[str], threads: int) -> Measured:
    """Run a process to its end; this one is small, so the peak is the other's own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "POLARS_MAX_THREADS": str(threads)}
    started = time.monotonic()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, printed)
    return Measured(seconds, used.ru_maxrss / 1024, _stages(printed, seconds))


def _stages(printed: str, seconds: float) -> dict[str, float]:
    """Return how long each stage took, from the timed lines; what is left goes to both ends."""
    stages: dict[str, float] = {}
    last = 0.0
    for moment, word in re.findall(r"^\[ *([\d.]+) s\] features +(\w+)", printed, re.M):
        if word in STAGES:
            stages[STAGES[word]] = float(moment) - last
            last = float(moment)
    return {**stages, "tensors, report, start": seconds - last} if stages else {}


def _text(found: dict[int, dict[str, list[Measured]]], options: argparse.Namespace) -> str:
    arguments = f"--rows {' '.join(map(str, sorted(options.rows)))} --repeats {options.repeats}"
    arguments += f" --memory-limit {options.memory_limit} --threads {options.threads}"
    cpus, memory = os.cpu_count(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [
        "# Rate and memory of the features command",
        f"`python benchmarks/features_speed.py {arguments}`",
        f"{_processor()}, {cpus} cores, {memory:.0f} GiB; Python {platform.python_version()}, "
        f"Polars {version('polars')}, DuckDB {version('duckdb')}; {time.strftime('%Y-%m-%d')}.",
        "The dataset `funnel` from its logs to prepared rows, tensors and report; DuckDB from the "
        "same logs\nto one folder of parquet with the same columns and codes (no tensors, no "
        "report, no checks of rows).\nMedians; memory is the largest of all repetitions.",
        markdown(
            ["rows", "engine", "seconds", "rows/s", "peak MB", "seconds, memory beside 1/4 rows"],
            [_row(found, rows, engine) for rows, engines in found.items() for engine in engines],
        ),
        "Seconds of the pipeline's stages (medians):",
        _stage_table(found),
    ]
    return "\n\n".join(parts) + "\n"


def _row(found: dict[int, dict[str, list[Measured]]], rows: int, engine: str) -> list[str]:
    seconds, memory = _median(found, rows, engine), _peak(found, rows, engine)
    ratio = ""
    if rows % 4 == 0 and rows // 4 in found:
        quarter = rows // 4
        times = seconds / _median(found, quarter, engine)
        ratio = f"{times:.1f} x, {memory / _peak(found, quarter, engine):.1f} x"
    return [
        f"{rows:,}",
        engine,
        f"{seconds:.1f}",
        f"{rows / seconds:,.0f}",
        f"{memory:,.0f}",
        ratio,
    ]


def _stage_table(found: dict[int, dict[str, list[Measured]]]) -> str:
    names = list(next(iter(found.values()))["pipeline"][0].stages)
    rows = [
        [
            f"{rows:,}",
            *(f"{statistics.median(m.stages[n] for m in engines['pipeline']):.1f}" for n in names),
        ]
        for rows, engines in found.items()
    ]
    return markdown(["rows", *names], rows)


def _median(found: dict[int, dict[str, list[Measured]]], rows: int, engine: str) -> float:
    return statistics.median(one.seconds for one in found[rows][engine])


def _peak(found: dict[int, dict[str, list[Measured]]], rows: int, engine: str) -> float:
    return max(one.memory for one in found[rows][engine])


def _processor() -> str:
    models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return models[0] if models else platform.machine()


if __name__ == "__main__":
    main()
