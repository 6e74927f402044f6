"""Stage entry point: a run in, one self-contained artifact out."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import onnx
import polars as pl
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

import recsys_moe
from export.card import model_card
from export.columns import raw_feeds
from export.core import export_core
from export.gates import check_batches, check_graph
from export.graph import IR_VERSION, OPSET, count_operators, merge
from export.manifest import (
    CODES,
    CORE_FILE,
    MODEL_FILE,
    NUMBERS,
    PREPROCESS_FILE,
    SPEC_FILE,
    Manifest,
    list_files,
)
from export.outputs import chosen_outputs, logits_of, metrics_of
from export.parity import awkward_frame, check_parity
from export.preprocess import preprocess_model
from export.publish import published, staging
from export.sample import sample_rows, write_sample
from export.sparse import plan, with_form
from export.subset import restricted
from export.triton import write_triton
from recsys_moe.checkpoint import load_config, load_model
from recsys_moe.command import output_folder, report_errors, run_command
from recsys_moe.errors import RequestError
from recsys_moe.files import read_json, sha256_file, write_text
from recsys_moe.moe.accounts import output_records, tasks_of
from recsys_moe.paths import CONF_DIR
from recsys_moe.progress import say
from recsys_moe.spec import FeatureSpec

_PROGRAM = "recsys-moe-export"


def main() -> None:
    """Run the export command."""
    run_command(_main, _PROGRAM)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="export")
@report_errors(_PROGRAM)
def _main(cfg: DictConfig) -> None:
    """Turn a finished run into an artifact."""
    export_run(
        Path(cfg.run).absolute(),
        output_folder(cfg),
        tolerance=_positive(cfg.tolerance),
        overwrite=bool(cfg.overwrite),
        outputs=_names(cfg.outputs),
        dispatch=str(cfg.dispatch),
    )


def export_run(
    run: Path,
    output: Path,
    *,
    tolerance: float,
    overwrite: bool,
    outputs: Sequence[str] = (),
    dispatch: str = "auto",
) -> Manifest:
    """Publish a run's best checkpoint as an artifact, or find that it is published already.

    Args:
        run: The folder of a finished run.
        output: The artifact's folder; its parent gets a hidden one while this works.
        tolerance: The largest gap to the checkpoint that may be published.
        overwrite: Whether another artifact at `output` may be replaced.
        outputs: Predictions to export without what only others need; none named, all.
        dispatch: How experts are computed: `auto`, `dense` or `where` (see `export.sparse`).

    Returns:
        The artifact's manifest.

    Raises:
        RequestError: The run is not finished, `output` belongs to something else, an unknown
            output, or a router or form of dispatch that a graph cannot have.
        SpecError: The feature spec has no graph.
        ArtifactError: The graph is not portable, or does not reproduce the checkpoint.
    """
    model, spec = load_model(run)
    outputs = chosen_outputs(spec, outputs)
    tasks = tasks_of(spec, outputs)
    needed = restricted(model, tasks)
    experts = plan(needed, spec, dispatch)
    evaluation = run / "evaluation.json"
    metrics = metrics_of(read_json(evaluation), outputs) if evaluation.exists() else None
    identity = {
        "run": sha256_file(run / "best.ckpt"),
        "feature spec": spec.digest,
        "tolerance": tolerance,
        "evaluation": metrics,
        "version": recsys_moe.__version__,
        "outputs": outputs,
        "dispatch": experts.form,
    }
    done = published(output, identity, overwrite=overwrite)
    if done is not None:
        say("export", f"already there: {output}")
        return done
    with staging(output) as folder:
        sample = _read_sample(run, spec)
        frame = awkward_frame(spec, run, sample)
        logits = logits_of(spec, outputs)
        _write_graphs(with_form(needed, experts.form), spec, run, folder, outputs)
        by_rows = experts.form == "where"
        check_graph(folder / PREPROCESS_FILE)
        check_graph(folder / CORE_FILE, is_core=True, by_rows=by_rows, gates=experts.gates)
        check_graph(folder / MODEL_FILE, by_rows=by_rows)
        check_batches(
            folder / MODEL_FILE,
            lambda rows: raw_feeds(frame.head(rows), spec.columns),
            [*outputs, *logits],
        )
        say("export", f"comparing with the checkpoint on {frame.height:,} raw rows")
        parity = check_parity(folder, model, spec, run, frame, tolerance=tolerance, outputs=outputs)
        say("export", f"largest gap {parity.largest_gap:.2g}")
        shutil.copyfile(run / SPEC_FILE, folder / SPEC_FILE)
        description = _model_description(run)
        name = f"{spec.dataset}-{description['name']}"
        write_sample(folder, spec, sample_rows(spec, sample), list(outputs))
        write_triton(folder, name, spec.columns, outputs)
        costs = output_records(model, spec, outputs)
        about: dict[str, Any] = {
            "name": name,
            "inputs": spec.columns,
            "outputs": outputs,
            "logits": logits,
            "opset": OPSET,
            "ir_version": IR_VERSION,
            "keys": spec.keys,
            "user": spec.user,
            "parity": parity,
            "metrics": metrics,
            "data": {
                "dataset": spec.dataset,
                "train_rows": spec.train_rows,
                "train_window": list(spec.train_window) if spec.train_window else None,
                "keep_rates": {
                    task.name: task.keep_rate
                    for task in map(spec.task, tasks)
                    if task.keep_rate < 1
                },
            },
            "model": description,
            "parameters": costs[-1]["parameters"],
            "code_version": recsys_moe.__version__,
            "spec_digest": spec.digest,
            "run_digest": identity["run"],
            "dispatch": experts.form,
            "accounts": tuple(costs),
        }
        write_text(folder / "MODEL_CARD.md", model_card(Manifest(files={}, **about), spec))
        manifest = Manifest(files=list_files(folder), **about)
        manifest.save(folder)
        Manifest.verify(folder)
    size = sum(record.bytes for record in manifest.files.values())
    say("export", f"{output}: {size / 1e6:.1f} MB, {', '.join(manifest.outputs)}")
    return manifest


def _write_graphs(
    model: nn.Module, spec: FeatureSpec, run: Path, folder: Path, outputs: Sequence[str]
) -> None:
    """Write the three graphs and their weights."""
    preprocess = preprocess_model(spec, run)
    core = export_core(model, spec, folder, outputs)
    merged = merge(preprocess, core)
    onnx.save(preprocess, folder / PREPROCESS_FILE)
    onnx.save(merged, folder / MODEL_FILE)
    nodes = {
        name: sum(count_operators(m).values())
        for name, m in ((PREPROCESS_FILE, preprocess), (CORE_FILE, core))
    }
    say(
        "export",
        ", ".join(f"{name} {count} nodes" for name, count in nodes.items())
        + f", boundary {CODES} [{spec.num_slots}] and {NUMBERS} [{spec.num_numbers}]",
    )


def _read_sample(run: Path, spec: FeatureSpec) -> pl.DataFrame:
    path = run / "sample.parquet"
    if not path.is_file():
        raise RequestError(str(path), wanted="the rows that training puts there", got="none")
    sample = pl.read_parquet(path)
    raw_feeds(sample.head(1), spec.columns)  # refuses a missing column and another type
    return sample


def _model_description(run: Path) -> dict[str, Any]:
    """Return the builder's name and sizes from the run's configuration."""
    values = OmegaConf.to_container(load_config(run).model, resolve=True)
    assert isinstance(values, dict)
    described = _described(values)
    return {"name": described.pop("name"), "sizes": described}


def _described(values: Any) -> Any:
    """Return a configuration with what it builds as `name` and without Hydra's other words."""
    if not isinstance(values, dict):
        return values
    name = {"name": str(values["_target_"]).rpartition(".")[2]} if "_target_" in values else {}
    rest = {key: _described(value) for key, value in values.items() if not key.startswith("_")}
    return {**name, **rest}


def _names(outputs: Any) -> list[str]:
    if not isinstance(outputs, ListConfig):
        raise RequestError("outputs", wanted="a list, outputs=[p_click]", got=repr(outputs))
    return [str(name) for name in outputs]


def _positive(tolerance: Any) -> float:
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not tolerance > 0:
        raise RequestError("tolerance", wanted="a number above 0", got=repr(tolerance))
    return float(tolerance)


if __name__ == "__main__":
    main()
