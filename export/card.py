"""The model card: what the manifest and the feature spec say, for people.

Every figure is computed; what cannot be known from the data is said to be unknown.
"""

import math
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from omegaconf import OmegaConf

from export.manifest import Manifest
from recsys_moe.spec import Bucketized, Categorical, Crossed, FeatureSpec, Numeric, Task, Vector

_METRICS = ("auc", "gauc", "log_loss", "ne", "calibration", "rmse", "mae", "r2")
_COUNTS = ("positives", "mean", "predicted_mean")


def model_card(manifest: Manifest, spec: FeatureSpec) -> str:
    """Return `MODEL_CARD.md`: a YAML head as Hugging Face reads it, and the text."""
    sections = [
        f"---\n{OmegaConf.to_yaml(OmegaConf.create(_head(manifest)))}---\n",
        f"# {manifest.name}\n",
        f"{_model_sentence(manifest, spec)}\n",
        f"## Outputs\n\n{_outputs(manifest, spec)}\n",
        f"## Intended use\n\n{_use(manifest, spec)}\n",
        f"## Data and training\n\n{_data(manifest, spec)}\n",
        f"## Inputs\n\n{_inputs(spec)}\n",
        f"## Evaluation\n\n{_evaluation(manifest)}\n",
        f"## Cost\n\n{_cost(manifest)}\n",
        f"## Fidelity\n\n{_fidelity(manifest)}\n",
        f"## Limits\n\n{_limits(spec)}\n",
    ]
    return "\n".join(sections)


def _head(manifest: Manifest) -> dict[str, Any]:
    binary = any(name.startswith("p_") for name in manifest.outputs)
    kind = "tabular-classification" if binary else "tabular-regression"
    head: dict[str, Any] = {
        "library_name": "onnx",
        "pipeline_tag": kind,
        "tags": ["recommendation", "multi-task-learning", "onnx", str(manifest.model["name"])],
    }
    results = [
        {"type": metric, "name": f"{task} {metric}", "value": values[metric]}
        for task, values in _tasks(manifest).items()
        for metric in _METRICS
        if values.get(metric) is not None
    ]
    if manifest.metrics is not None and results:
        dataset = {"name": manifest.data["dataset"], "type": manifest.data["dataset"]}
        dataset["split"] = str(manifest.metrics.get("split"))
        entry = {"task": {"type": kind}, "dataset": dataset, "metrics": results}
        head["model-index"] = [{"name": manifest.name, "results": [entry]}]
    return head


def _tasks(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return dict((manifest.metrics or {}).get("tasks", {}))


def _model_sentence(manifest: Manifest, spec: FeatureSpec) -> str:
    sizes = ", ".join(f"{key} {value}" for key, value in manifest.model["sizes"].items())
    needed, all_tasks = len(_needed(manifest, spec)), len(spec.tasks)
    share = f"{all_tasks}" if needed == all_tasks else f"{needed} of {all_tasks}"
    return (
        f"A `{manifest.model['name']}` with {manifest.parameters:,} weights ({sizes}) for "
        f"{share} tasks on `{spec.dataset}`, as one ONNX graph from raw columns to "
        f"predictions. Opset {manifest.opset}, IR {manifest.ir_version}; it runs in stock ONNX "
        "Runtime. `manifest.json` lists every file with its digest."
    )


def _needed(manifest: Manifest, spec: FeatureSpec) -> list[Task]:
    """Return the tasks that the artifact's outputs are made of."""
    chains = {f"p_{name}": chain for name, chain in spec.outputs()}
    names = {name for output in manifest.outputs for name in chains.get(output, (output[2:],))}
    return [task for task in spec.tasks if task.name in names]


def _outputs(manifest: Manifest, spec: FeatureSpec) -> str:
    rows = []
    for name, chain in spec.outputs():
        if f"p_{name}" not in manifest.outputs:
            continue
        space = spec.task(name).space if len(chain) == 1 else "all"
        given = "" if space == "all" else f" given {space}"
        meaning = f"P({name}{given})" if len(chain) == 1 else f"P({' and '.join(chain)})"
        rows.append(f"| `p_{name}` | {meaning} | {'all rows' if space == 'all' else space} |")
    for task in spec.regressions:
        if f"y_{task.name}" not in manifest.outputs:
            continue
        given = "" if task.space == "all" else f" given {task.space}"
        about = "all rows" if task.space == "all" else task.space
        mean = "exp(mean of log(1 + y)) - 1" if task.transform == "log1p" else "mean"
        rows.append(f"| `y_{task.name}` | {mean} of {task.name}{given} | {about} |")
    return "| output | meaning | about |\n| --- | --- | --- |\n" + "\n".join(rows)


def _use(manifest: Manifest, spec: FeatureSpec) -> str:
    labels = ", ".join(f"`{task.label}`" for task in _needed(manifest, spec))
    return (
        f"Ranking and estimating {labels} for rows distributed as those of `{spec.dataset}`. "
        "The probabilities are the model's own; how well they are calibrated is in the table of "
        "the evaluation. Decisions about people need a check for fairness, which nothing here "
        "replaces."
    )


def _data(manifest: Manifest, spec: FeatureSpec) -> str:
    window = ""
    if spec.train_window is not None:
        first, last = (datetime.fromtimestamp(t / 1e6, UTC).isoformat() for t in spec.train_window)
        window = f", from {first} to {last}"
    weight = f" Rows count by `{spec.row_weight}`." if spec.row_weight else ""
    sampled = "".join(
        f" Of the negatives of `{task.name}` training saw {task.keep_rate:.4g}: ln({task.keep_rate}"
        f") = {math.log(task.keep_rate):.4f} is added to its logit in the graph, so that "
        "probabilities are those of all rows."
        for task in _needed(manifest, spec)
        if task.keep_rate < 1
    )
    return (
        f"Trained on {spec.train_rows:,} rows of `{spec.dataset}`{window}.{weight}{sampled} "
        f"Feature spec {manifest.spec_digest[:16]}, checkpoint {manifest.run_digest[:16]}, "
        f"recsys-moe {manifest.code_version}."
    )


def _inputs(spec: FeatureSpec) -> str:
    kinds = Counter(type(feature) for feature in spec.features)
    counts = (
        f"{len(spec.columns)} columns; {kinds[Categorical]} categorical, {kinds[Crossed]} "
        f"crossed, {kinds[Bucketized]} bucketised, {kinds[Numeric]} numeric and "
        f"{kinds[Vector]} vector features. "
        'Missing is `""`, -2^63 or NaN.'
    )
    rows = []
    for column in spec.columns:
        kind = f"list of {column.type}" if column.is_list else column.type
        kind = f"vector of {column.dim} {column.type}" if column.dim else kind
        used = ", ".join(f"`{f.name}`" for f in spec.features if column.name in f.columns)
        rows.append(f"| `{column.name}` | {kind} | {used or 'nothing'} |")
    return f"{counts}\n\n| column | type | feature |\n| --- | --- | --- |\n" + "\n".join(rows)


def _evaluation(manifest: Manifest) -> str:
    tasks = _tasks(manifest)
    if not tasks:
        return "This run had not been evaluated when it was exported: its quality is unknown."
    metrics = [name for name in _METRICS if any(v.get(name) is not None for v in tasks.values())]
    counts = [name for name in _COUNTS if any(name in v for v in tasks.values())]
    head = ["output", "space", "rows", *counts, *metrics]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for task, values in tasks.items():
        output = f"y_{task}" if "rmse" in values else f"p_{task}"
        figures = [_figure(values.get(name)) for name in ("rows", *counts, *metrics)]
        cells = [f"`{output}`", str(values.get("space", "")), *figures]
        lines.append(f"| {' | '.join(cells)} |")
    split = (manifest.metrics or {}).get("split")
    return f"On the {split} split.\n\n" + "\n".join(lines)


def _figure(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else f"{value:.5f}"


def _cost(manifest: Manifest) -> str:
    if not manifest.accounts:
        return "This artifact was exported by a version that did not count it."
    lines = [
        "| output | weights | active weights | FLOPs per row | if dense |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for record in manifest.accounts:
        alone = len(record["outputs"]) == 1
        more = " + frozen" if record["uncounted"] else ""
        cells = [
            f"`{record['outputs'][0]}`" if alone else "all",
            f"{record['parameters']:,}",
            f"{record['active_parameters']:,}",
            f"{record['flops_per_row']:,}{more}",
            f"{record['dense_flops_per_row']:,}{more}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    frozen = sorted({name for record in manifest.accounts for name in record["uncounted"]})
    uncounted = f" Not counted are the frozen experts {', '.join(frozen)}." if frozen else ""
    form = (
        "each expert on the rows that chose it"
        if manifest.dispatch == "where"
        else "every expert on every row (the last column)"
    )
    return (
        "What an output needs, without what only others need. Active weights are the most that "
        "one row is computed with: the embeddings that it looks up, and of each gate the experts "
        "that it may use at once. A FLOP is half a multiply-add of a matrix product. This graph "
        f"computes {form}.{uncounted}\n\n" + "\n".join(lines)
    )


def _fidelity(manifest: Manifest) -> str:
    parity = manifest.parity
    has_amounts = any(name.startswith("y_") for name in manifest.outputs)
    amounts = ", of an amount in standard deviations or parts of it" if has_amounts else ""
    return (
        f"Over {parity.rows:,} raw rows, with missing, unseen, infinite and non-ASCII values, "
        f"`model.onnx` differed from the checkpoint by at most {parity.largest_gap:.2g} in "
        f"probability{amounts} (allowed: {parity.tolerance:g})."
    )


def _limits(spec: FeatureSpec) -> str:
    lines = ["Values outside a vocabulary share codes:", ""]
    lines += [
        f"- `{table.name}`: {table.num_codes - table.first_value:,} values known, "
        f"{table.num_oov:,} more codes for all others"
        for table in spec.tables
        if any(isinstance(f, Categorical) and f.table == table.name for f in spec.features)
    ]
    if len(lines) == 2:
        lines = []
    numeric = [
        f for f in spec.numeric_features if isinstance(f, Numeric) and f.transform != "identity"
    ]
    if numeric:
        names = ", ".join(f"`{f.expression or f.column}`" for f in numeric)
        lines += ["", f"Negative values of {names} count as missing."]
    lines += ["", "Data that drifts from the training window makes all figures above optimistic."]
    return "\n".join(lines).strip()
