"""Raw logs in; prepared rows, training tensors and the feature spec out."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from pipelines.dataset.opened import Opened, open_dataset
from pipelines.dataset.past_rules import past_columns
from pipelines.dataset.roles import SPLITS
from pipelines.encoding.tensors import write_tensors
from pipelines.events.attribution import attribute
from pipelines.events.buckets import units
from pipelines.events.scatter import Totals, past_keys, scatter_impressions
from pipelines.fitting.fit import fit
from pipelines.fitting.growth import Growth, check_growth, growth_report, read_growth
from pipelines.logs.logs import identity
from pipelines.past.past import add_past
from pipelines.prepare import Prepared, prepare
from pipelines.report.drift import check_drift
from pipelines.report.report import BuildCounts, write_report
from pipelines.rows.duplicates import find_duplicates
from pipelines.rows.quarantine import sorted_reasons
from pipelines.rows.survey import bounded, counted
from pipelines.simulated import funnel
from pipelines.simulated.truth import write_truth
from pipelines.work import Work
from recsys_moe.command import building, output_folder, report_errors, run_command
from recsys_moe.errors import RequestError
from recsys_moe.files import REQUEST, claim, finish
from recsys_moe.paths import CONF_DIR
from recsys_moe.progress import say
from recsys_moe.runners import LocalRunner, Runner
from recsys_moe.spec import FeatureSpec

_PROGRAM, _STAGE = "recsys-moe-features", "features"
_VERSION = 2
_RAW = "raw"  # simulated logs: kept when the rest is built again


def main() -> None:
    """Run `recsys-moe-features`."""
    run_command(_main, _PROGRAM)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="features")
@report_errors(_PROGRAM)
def _main(cfg: DictConfig) -> None:
    value = OmegaConf.to_container(cfg.dataset, resolve=True)
    with building("runner"):
        runner = instantiate(cfg.runner)
    build(
        value,
        folder=_dataset_folder(),
        output=output_folder(cfg),
        max_quarantine_share=cfg.max_quarantine_share,
        max_drift=cfg.max_drift,
        grow_from=None if cfg.grow_from is None else Path(str(cfg.grow_from)).absolute(),
        overwrite=cfg.overwrite,
        runner=runner,
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
    value: Any,
    *,
    folder: Path,
    output: Path,
    max_quarantine_share: float = 0.01,
    max_drift: float | None = None,
    grow_from: Path | None = None,
    overwrite: bool = False,
    runner: Runner | None = None,
) -> None:
    """Build a training set from what a dataset file says.

    Args:
        value: The dataset file's plain values.
        folder: Where its relative paths start.
        output: The folder to write; one that already holds this very training set is left alone.
        max_quarantine_share: The share of rows above which unusable ones are an error.
        max_drift: The population stability index of a feature above which the build fails.
        grow_from: A features folder whose codes and scales are kept.
        overwrite: Whether a training set of another request may be replaced.
        runner: Who runs the files and buckets; this process if nobody is named.

    Raises:
        RequestError: The dataset file, its logs or the output are not what they should be.
        DataError: Too many rows cannot be used, or a feature drifts too far.
    """
    _check_share("max_quarantine_share", max_quarantine_share)
    opened = open_dataset(value, folder, raw=output / _RAW)
    if grow_from is not None and grow_from.resolve() == output.resolve():
        wanted = "another folder than output"
        raise RequestError(f"grow_from={grow_from}", wanted=wanted, got="the same")
    old = None if grow_from is None else read_growth(grow_from)
    if old is not None:
        added = past_columns(opened.dataset, opened.columns)
        check_growth(opened.dataset, {**opened.columns, **added}, old.spec)
    request = {
        "stage": _STAGE,
        "version": _VERSION,
        "dataset": value,
        "max_quarantine_share": float(max_quarantine_share),
        "max_drift": max_drift,
        "grow_from": None if old is None else old.spec.digest,
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
        _build(opened, output, max_quarantine_share, max_drift, old, runner or LocalRunner())
    except RequestError:
        # A wrong request leaves nothing that the right one would have to overwrite.
        _sweep(output, keep=(REQUEST,))
        (output / REQUEST).unlink()
        raise


def _check_share(what: str, share: Any) -> None:
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise RequestError(what, wanted="a number from 0 to 1", got=repr(share))


def _inputs(opened: Opened) -> dict[str, Any]:
    """Return what the output is made from: the digest of each file, or who simulates them."""
    if opened.dataset.simulation is not None:
        return {"simulator": funnel.VERSION}
    return {"files": [identity(log) for log in opened.files]}


def _build(
    opened: Opened,
    output: Path,
    max_quarantine_share: float,
    max_drift: float | None,
    old: Growth | None,
    runner: Runner,
) -> None:
    dataset = opened.dataset
    say(_STAGE, f"{dataset.name}: {len(opened.files)} files, {len(dataset.features)} features")
    work = _surveyed(opened, output, runner)
    totals = Totals()
    events: dict[str, Any] = {}
    if work.events:
        work, totals, events = attribute(work, runner, max_quarantine_share)
        say(_STAGE, f"joined {_counts({name: log['rows_in'] for name, log in events.items()})}")
    elif past_keys(work):
        for part in runner.map(scatter_impressions, work, units(work.first_rows)):
            totals.add(part)
    if dataset.unique_keys and not work.events:
        find_duplicates(work, runner)
    if past_keys(work):
        for history, too_many in add_past(work, totals, runner).items():
            events.setdefault("histories", {})[history] = {"left_out": too_many}
        say(_STAGE, f"looked back: {', '.join(dataset.past_columns)}")
    prepared = prepare(work, runner, max_quarantine_share)
    left_out = {"quarantined": prepared.num_quarantined, "left out": sum(prepared.dropped.values())}
    say(_STAGE, f"prepared {_counts(prepared.rows)}; {_counts(left_out)}")
    if dataset.simulation is not None:
        write_truth(output / _RAW, output)
    columns = {**work.columns, **past_columns(dataset, work.columns)}
    spec = fit(dataset, columns, prepared, output, old)
    say(_STAGE, f"fitted {len(spec.tables)} tables on {spec.train_rows:,} train rows")
    for split in SPLITS:
        write_tensors(spec, split, prepared.rows[split], output, runner)
    growth = None if old is None else growth_report(old, spec, output)
    report = write_report(output, spec, _build_counts(work, prepared, events, growth))
    check_labels(spec, report)
    check_drift(report, max_drift)
    shutil.rmtree(output / "stage", ignore_errors=True)
    rows = {split: prepared.rows[split] for split in SPLITS}
    finish(output, {"dataset": dataset.name, "rows": rows, "spec": spec.digest})
    say(_STAGE, f"done: {output}")


def _surveyed(opened: Opened, output: Path, runner: Runner) -> Work:
    """Count the rows of all files and find the bounds of the split."""
    work = Work(
        dataset=opened.dataset,
        logs=tuple(opened.logs),
        columns=opened.columns,
        events=tuple(opened.events),
        output=output,
        first_rows=(),
        event_rows={},
        num_buckets=1,
    )
    return bounded(counted(work, runner), runner)


def _build_counts(
    work: Work, prepared: Prepared, events: dict[str, Any], growth: dict[str, Any] | None
) -> BuildCounts:
    return BuildCounts(
        dataset=work.dataset.name,
        rows_in=prepared.rows_in,
        rows={split: prepared.rows[split] for split in SPLITS},
        dropped=sorted_reasons(prepared.dropped),
        quarantined=sorted_reasons(prepared.quarantined),
        events=events,
        growth=growth,
        time=work.dataset.time,
    )


def check_labels(spec: FeatureSpec, report: dict[str, Any]) -> None:
    """Refuse a task that the train or valid rows of its space cannot teach or measure.

    Raises:
        RequestError: No label of a task is known, or those of a binary one are all equal.
    """
    for task in spec.tasks:
        for split in ("train", "valid"):
            counts = report["splits"][split]["tasks"][task.name]
            if task.kind != "binary":
                if not counts["known"]:
                    wanted = f"known labels among the {split} rows of its space"
                    raise RequestError(f"task {task.name!r}", wanted=wanted, got="none")
                continue
            negatives = counts["known"] - counts["positives"]
            if not counts["positives"] or not negatives:
                raise RequestError(
                    f"task {task.name!r}",
                    wanted=f"positives and negatives among the {split} rows of its space",
                    got=f"{counts['positives']:,} positives and {negatives:,} negatives",
                )


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
