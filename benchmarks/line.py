"""Run the product's own commands, as a user would, and collect what they wrote."""

import csv
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MODULES = {
    "features": "pipelines.build",
    "train": "recsys_moe.train",
    "evaluate": "recsys_moe.evaluate",
}
MODELS = ("single_task", "shared_bottom", "mmoe", "ple")


def command(stage: str, *arguments: str) -> float:
    """Run one command to its end and return its wall seconds; its output goes to stderr."""
    started = time.monotonic()
    words = [sys.executable, "-m", MODULES[stage], *arguments]
    subprocess.run(words, check=True, stdout=sys.stderr)
    return time.monotonic() - started


def train_and_evaluate(features: Path, run: Path, *overrides: str) -> dict[str, Any]:
    """Train a run with the defaults and the given overrides, and measure it on the test split."""
    seconds = command("train", f"features={features}", f"output={run}", *overrides)
    command("evaluate", f"run={run}", f"features={features}", "split=test")
    result: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    result["seconds"] = seconds
    result["parameters"] = json.loads((run / "_SUCCESS").read_text())["parameters"]
    return result


def validation_curve(run: Path, column: str) -> list[float]:
    """Return a validation metric after each epoch, from metrics.csv."""
    with (run / "metrics.csv").open() as handle:
        return [float(row[column]) for row in csv.DictReader(handle) if row[column]]


def mean_sd(values: Sequence[float], digits: int = 5) -> str:
    """Write a mean and its sample standard deviation."""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
