"""A run and its features in, metrics of each task in its own space out: `recsys-moe-evaluate`.

With `gates=true`, a report on what the run's gates do too (`recsys_moe.gate_report`).
"""

from pathlib import Path
from typing import Any

import hydra
import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig

from recsys_moe.command import report_errors, run_command
from recsys_moe.errors import RequestError
from recsys_moe.files import SUCCESS, read_json, sha256_file, write_json
from recsys_moe.paths import CONF_DIR
from recsys_moe.progress import say
from recsys_moe.spec import FeatureSpec

PROGRAM = "recsys-moe-evaluate"
BATCH_ROWS = 8192


def main() -> None:
    """Run the command."""
    run_command(_main, PROGRAM)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="evaluate")
@report_errors(PROGRAM)
def _main(cfg: DictConfig) -> None:
    run, features = Path(cfg.run).absolute(), Path(cfg.features).absolute()
    for name, folder, what, holds in (
        ("run", run, "run", "best.ckpt"),
        ("features", features, "features folder", "tensors"),
    ):
        if not (folder / SUCCESS).exists() or not (folder / holds).exists():
            raise RequestError(
                f"{name}={cfg[name]}", wanted=f"a finished {what}", got="none or an unfinished one"
            )
    spec_file = "feature_spec.json"
    if sha256_file(run / spec_file) != sha256_file(features / spec_file):
        raise RequestError(
            f"features={cfg.features}",
            wanted="the features the run was trained on, or new rows encoded like them",
            got=f"another feature spec, of dataset {_dataset(features)!r} "
            f"(the run: {_dataset(run)!r})",
        )
    segments = [cfg.segments] if isinstance(cfg.segments, str) else list(cfg.segments)
    if cfg.gates:
        from recsys_moe.gate_report.report import write_report

        shown = write_report(run, features, cfg.split, segments, cfg.ablation_rows)
        say("gates", f"{shown}")
    elif segments:
        raise RequestError(
            f"segments={segments[0]}", wanted="gates=true beside it", got=f"gates={cfg.gates}"
        )
    result = evaluate(run, features, cfg.split)
    print(table(result))
    say("evaluate", f"{run / 'evaluation.json'}")


def evaluate(run: Path, features: Path, split: str) -> dict[str, Any]:
    """Measure a run's best checkpoint on a split; an unchanged evaluation.json is read back.

    Raises:
        RequestError: A task has only one class, or no label, among the rows of its own space.
    """
    identity = {
        "checkpoint": sha256_file(run / "best.ckpt"),
        "features": sha256_file(features / SUCCESS),
    }
    known = run / "evaluation.json"
    if known.exists():
        before: dict[str, Any] = read_json(known)
        if {**identity, "split": split}.items() <= before.items():
            return before
    from recsys_moe.checkpoint import load_model
    from recsys_moe.datamodule import Split
    from recsys_moe.predict import predict_split
    from recsys_moe.predictions import evaluate_outputs

    model, spec = load_model(run)
    data = Split(features, split, spec)
    logits, labels, known_labels = predict_split(model, data, BATCH_ROWS)
    truth = _truth(features / "truth" / f"{split}.parquet", spec)
    tasks = evaluate_outputs(spec, logits, labels, known_labels, data.users, truth)
    for name, metrics in tasks.items():
        if "auc" in metrics and metrics["auc"] is None:
            raise RequestError(
                f"split={split}, {name}",
                wanted="positives and negatives",
                got=f"{metrics['positives']} positives in {metrics['rows']} rows",
            )
        if not metrics["rows"]:
            raise RequestError(f"split={split}, {name}", wanted="known labels", got="none")
    result = {"split": split, "rows": data.num_rows, "tasks": tasks, **identity}
    write_json(known, result)
    return result


def _truth(path: Path, spec: FeatureSpec) -> dict[str, NDArray[np.float64]] | None:
    """Read the true probabilities of a simulated split, row for row with its tensors, if any."""
    if not path.exists():
        return None
    frame = pl.read_parquet(path)
    return {name: frame[f"p_{name}"].to_numpy() for name, _ in spec.outputs()}


def table(result: dict[str, Any]) -> str:
    """Lay an evaluation out for a terminal."""
    tasks = result["tasks"]
    columns = ["rows", "positives", "auc", "log_loss", "ne", "calibration", "gauc"]
    if any("regret" in metrics for metrics in tasks.values()):
        columns += ["best_auc", "regret"]
    amounts = ["rows", "mean", "predicted_mean", "rmse", "mae", "r2", "loss"]
    head, lines = f"{result['split']} split", []
    for names, kind in ((columns, "auc"), (amounts, "rmse")):
        mine = {task: metrics for task, metrics in tasks.items() if kind in metrics}
        if mine:
            lines.append(head.ljust(26) + "".join(f"{name:>{_width(name)}}" for name in names))
            head = ""
        for task, metrics in mine.items():
            cells = (f"{_cell(metrics[name]):>{_width(name)}}" for name in names)
            lines.append(f"  {task}".ljust(26) + "".join(cells))
    return "\n".join(lines)


def _width(name: str) -> int:
    return max(12, len(name) + 2)


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.5f}"


def _dataset(folder: Path) -> Any:
    return read_json(folder / "feature_spec.json").get("dataset")


if __name__ == "__main__":
    main()
