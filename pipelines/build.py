"""Raw logs in; prepared rows, training tensors and the feature spec out."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pipelines import funnel
from pipelines.attribution import attribute
from pipelines.fit import fit
from pipelines.logs import scan_logs
from pipelines.opened import Opened, open_dataset
from pipelines.prepare import Prepared, prepare
from pipelines.roles import SPLITS
from pipelines.tensors import Tally, write_tensors
from pipelines.truth import write_truth
from pipelines.vocabulary import read_vocabulary
from recsys_moe.command import output_folder, report_errors, run_command
from recsys_moe.errors import RequestError
from recsys_moe.files import REQUEST, claim, finish, sha256_file, write_json
from recsys_moe.paths import CONF_DIR
from recsys_moe.progress import say
from recsys_moe.spec import FeatureSpec

_PROGRAM, _STAGE = "recsys-moe-features", "features"
_VERSION = 1
_RAW = "raw"  # simulated logs: kept when the rest is built again


def main() -> None:
    """Run `recsys-moe-features`."""
    run_command(_main, _PROGRAM)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="features")
@report_errors(_PROGRAM)
def _main(cfg: DictConfig) -> None:
    value = OmegaConf.to_container(cfg.dataset, resolve=True)
    build(
        value,
        folder=_dataset_folder(),
        output=output_folder(cfg),
        max_quarantine_share=cfg.max_quarantine_share,
        overwrite=cfg.overwrite,
    )


def _dataset_folder() -> Path:
    """Return the folder of the chosen dataset file: relative paths in it start there."""
    runtime = HydraConfig.get().runtime
    choice = str(runtime.choices["dataset"]).removesuffix(".yaml")
    for source in runtime.config_sources:
        path = Path(source.path, "dataset", f"{choice}.yaml").absolute()
        if source.schema == "file" and path.exists():
            return path.parent
    return CONF_DIR / "dataset"


def build(
    value: Any, *, folder: Path, output: Path, max_quarantine_share: float, overwrite: bool
) -> None:
    """Build a training set from what a dataset file says.

    Args:
        value: The dataset file's plain values.
        folder: Where its relative paths start.
        output: The folder to write; one that already holds this very training set is left alone.
        max_quarantine_share: The share of rows above which unusable ones are an error.
        overwrite: Whether a training set of another request may be replaced.

    Raises:
        RequestError: The dataset file, its logs or the output are not what they should be.
        DataError: Too many rows cannot be used.
    """
    if not isinstance(max_quarantine_share, (int, float)) or not 0 <= max_quarantine_share <= 1:
        got = repr(max_quarantine_share)
        raise RequestError("max_quarantine_share", wanted="a number from 0 to 1", got=got)
    opened = open_dataset(value, folder, raw=output / _RAW)
    request = {
        "stage": _STAGE,
        "version": _VERSION,
        "dataset": value,
        "max_quarantine_share": float(max_quarantine_share),
        **_inputs(opened),
    }
    if claim(output, request, overwrite=overwrite):
        say(_STAGE, f"{output} is finished already")
        return
    _sweep(output, keep=(REQUEST, _RAW))
    try:
        simulation = opened.dataset.simulation
        if simulation is not None:
            funnel.simulate(output / _RAW, **asdict(simulation))
            say(_STAGE, f"simulated {simulation.rows:,} impressions")
            opened = open_dataset(value, folder, raw=output / _RAW)
        _build(opened, output, max_quarantine_share)
    except RequestError:
        # A wrong request leaves nothing that the right one would have to overwrite.
        _sweep(output, keep=(REQUEST,))
        (output / REQUEST).unlink()
        raise


def _inputs(opened: Opened) -> dict[str, Any]:
    """Return what the output is made from: the digest of each file, or who simulates them."""
    if opened.dataset.simulation is not None:
        return {"simulator": funnel.VERSION}
    return {
        "files": [
            {"name": log.path.name, "split": log.split, "sha256": sha256_file(log.path)}
            for log in opened.files
        ]
    }


def _build(opened: Opened, output: Path, max_quarantine_share: float) -> None:
    dataset, logs, columns = opened.dataset, opened.logs, opened.columns
    say(_STAGE, f"{dataset.name}: {len(opened.files)} files, {len(dataset.features)} features")
    joined, events = None, {}
    if opened.events:
        rows = scan_logs(dataset.source, logs, columns)
        found = attribute(dataset, rows, opened.events, output, max_quarantine_share)
        joined, events = found.labels, found.report
        joins = _counts({name: log["rows_in"] for name, log in events.items()})
        say(_STAGE, f"joined {joins}")
    prepared = prepare(dataset, logs, columns, output, max_quarantine_share, joined)
    say(_STAGE, f"prepared {_counts(prepared.rows)}; {sum(prepared.quarantined.values()):,} bad")
    if dataset.simulation is not None:
        write_truth(output / _RAW, output)
    spec = fit(dataset, columns, prepared, output)
    say(_STAGE, f"fitted {len(spec.tables)} tables on {spec.train_rows:,} train rows")
    tallies = encode_splits(spec, prepared, output)
    report = _report(dataset.name, prepared, events, tallies)
    write_json(output / "report.json", report)
    check_labels(spec, tallies)
    finish(output, {"dataset": dataset.name, "rows": prepared.rows, "spec": spec.digest})
    say(_STAGE, f"done: {output}")


def encode_splits(spec: FeatureSpec, prepared: Prepared, output: Path) -> dict[str, Tally]:
    """Write the tensors of every split."""
    vocabularies = {
        table.name: read_vocabulary(output / table.vocabulary)
        for table in spec.tables
        if table.vocabulary is not None
    }
    return {
        split: write_tensors(spec, split, prepared.rows[split], vocabularies, output)
        for split in SPLITS
    }


def check_labels(spec: FeatureSpec, tallies: dict[str, Tally]) -> None:
    """Refuse a task that the train or valid rows of its space cannot teach or measure.

    Raises:
        RequestError: All known labels of a task are equal, or there are none.
    """
    for task in spec.tasks:
        for split in ("train", "valid"):
            counts = tallies[split].tasks[task.name]
            negatives = counts["known"] - counts["positives"]
            if not counts["positives"] or not negatives:
                raise RequestError(
                    f"task {task.name!r}",
                    wanted=f"positives and negatives among the {split} rows of its space",
                    got=f"{counts['positives']:,} positives and {negatives:,} negatives",
                )


def _report(
    name: str, prepared: Prepared, events: dict[str, dict[str, Any]], tallies: dict[str, Tally]
) -> dict[str, Any]:
    return {
        "dataset": name,
        "rows_in": prepared.rows_in,
        "rows_out": sum(prepared.rows.values()),
        "rows_quarantined": sum(prepared.quarantined.values()),
        "quarantine": prepared.quarantined,
        **({"events": events} if events else {}),
        "splits": {split: tally.report() for split, tally in tallies.items()},
    }


def _sweep(output: Path, *, keep: tuple[str, ...]) -> None:
    """Remove what an interrupted run of the same request left."""
    for path in output.iterdir():
        if path.name in keep:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _counts(rows: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in rows.items())


if __name__ == "__main__":
    main()
