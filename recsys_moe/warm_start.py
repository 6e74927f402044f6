r"""Another run's weights as a start: what means the same is loaded, table rows move by value.

Shapes: V rows of all tables, d embedding width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from recsys_moe.checkpoint import load_config, load_model
from recsys_moe.meanings import BuildModel, Meaning, by_meaning, early_tasks, meanings
from recsys_moe.modules.embeddings import Embeddings
from recsys_moe.spec import FeatureSpec, Task
from recsys_moe.table_rows import TableMove, same_table, table_moves

NONE, NEW = "the run has none", "is new"


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What became of every tensor of a model.

    `moved` are tensors of tables, with how many rows of each table came (`moved`), start anew
    (`fresh`) or had no place any more (`left`); `loaded` came whole; `fresh` did not, and why.
    `rows` are the numbers of the rows that came, by tensor.
    """

    moved: dict[str, dict[str, dict[str, int]]]
    loaded: list[str]
    fresh: dict[str, str]
    rows: dict[str, Tensor]

    def lines(self) -> list[str]:
        """Return the three sets in words, a line each."""
        tables = [
            f"{name} {counts['moved']:,} of {counts['moved'] + counts['fresh']:,}"
            for name, counts in next(iter(self.moved.values()), {}).items()
        ]
        each = f" in each of {len(self.moved)} tensors" if len(self.moved) > 1 else ""
        fresh = [f"{name} ({why})" for name, why in self.fresh.items()]
        return [
            f"moved table rows{each}: {', '.join(tables) or 'none'}",
            f"loaded tensors: {', '.join(self.loaded) or 'none'}",
            f"fresh tensors: {', '.join(fresh) or 'none'}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"moved": self.moved, "loaded": self.loaded, "fresh": self.fresh}


def warm_start(
    model: nn.Module,
    build_model: BuildModel,
    spec: FeatureSpec,
    features: Path,
    run: Path,
    *,
    trim: Callable[[nn.Module], None] | None = None,
) -> WarmStart:
    """Overwrite in place what a finished run's best checkpoint knows of a new model.

    A tensor is loaded if the run has one of its name, shape and meaning: a task's own tensors go by
    the task's name, whatever its number; those that read the features match if every input means
    what it meant. Table rows move one by one: padding and missing, values outside the vocabulary
    where there are as many codes for them, and the vocabulary by value.

    Args:
        model: The new model, freshly initialised.
        build_model: Its builder.
        spec: Its feature spec.
        features: Where that spec's vocabularies lie.
        run: The folder of a finished run, of any architecture.
        trim: What takes away in place what the run's model has too much.

    Raises:
        RequestError: The run is not finished, or its files do not belong together.
    """
    with torch.random.fork_rng(devices=[]):  # training draws what it would draw without a start
        old_model, old_spec = load_model(run)
    old_build = instantiate(load_config(run).model, _convert_="all")
    same_tasks = early_tasks(old_build, old_spec) == early_tasks(build_model, spec)
    if trim is not None:
        trim(old_model)
        old_build = _trimmed(old_build, trim)
    old_names = by_meaning(meanings(old_build, old_spec))
    old_tensors, tensors = old_model.state_dict(), model.state_dict()
    moves = table_moves(old_spec, run, spec, features)
    tables = _tables(model)
    found = WarmStart({}, [], {}, {})
    for name, meaning in meanings(build_model, spec).items():
        old_name = old_names.get((meaning.name, meaning.task)) or old_names.get(
            (_alone(meaning.name), meaning.task)
        )
        old = old_tensors.get(old_name or "")
        why = _why_fresh(meaning, old, tensors[name], old_spec, spec, is_table=name in tables)
        if why is None and meaning.depends_on_tasks and name not in tables and not same_tasks:
            why = "it depends on all tasks, and they differ"
        if why is not None or old is None:
            found.fresh[name] = why or NONE
        elif name in tables:
            found.moved[name] = _move(old, tensors[name], moves)
            rows = np.concatenate([move.new_rows for move in moves])
            found.rows[name] = torch.from_numpy(rows)
        else:
            tensors[name].copy_(old)
            found.loaded.append(name)
    return found


def _trimmed(build_model: BuildModel, trim: Callable[[nn.Module], None]) -> BuildModel:
    def build(spec: FeatureSpec) -> nn.Module:
        model = build_model(spec)
        trim(model)
        return model

    return build


def _alone(name: str) -> str:
    """Return what a tensor of a pool's first bank is called while that is the only one."""
    return name.replace(".bank.banks.0.", ".bank.").replace("_bank.banks.0.", "_bank.")


def _tables(model: nn.Module) -> set[str]:
    """Return the names of the tensors that hold embedding tables."""
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, Embeddings)
        for name, _ in module.named_parameters()
    }


def _why_fresh(
    meaning: Meaning,
    old: Tensor | None,
    new: Tensor,
    old_spec: FeatureSpec,
    spec: FeatureSpec,
    *,
    is_table: bool,
) -> str | None:
    """Return why a tensor cannot be that of the run, None if it can."""
    tasks = {task.name: task for task in old_spec.tasks}
    if meaning.task is not None:
        if meaning.task not in tasks:
            return f"task {meaning.task!r} {NEW}"
        if _target(spec.task(meaning.task)) != _target(tasks[meaning.task]):
            return f"task {meaning.task!r} means something else"
    if old is None:
        return NONE
    if is_table:
        wide = old.shape[1:] == new.shape[1:]
        return None if wide else f"rows of {new.shape[1]} numbers, not {old.shape[1]}"
    if meaning.reads_features and (difference := _difference(old_spec, spec)):
        return f"it reads all features, and {difference}"
    if old.shape != new.shape:
        return f"shape {tuple(new.shape)}, not {tuple(old.shape)}"
    return None


def _target(task: Task) -> Task:
    """Return a task without what may change while its logit means the same."""
    return replace(task, label="", weight=1.0)


def _difference(old_spec: FeatureSpec, spec: FeatureSpec) -> str | None:
    """Say which input of a model is another one, None if all are the same in the same order."""
    groups: tuple[tuple[Sequence[Any], Sequence[Any]], ...] = (
        (old_spec.code_features, spec.code_features),
        (old_spec.numeric_features, spec.numeric_features),
    )
    for before, after in groups:
        for old, new in zip(before, after, strict=False):
            if old.name != new.name:
                return f"{new.name!r} stands where {old.name!r} did"
            if old != new:
                return f"{new.name!r} differs"
        if len(before) != len(after):
            longer = max(before, after, key=len)
            extra = longer[min(len(before), len(after))]
            return f"{extra.name!r} is {'new' if len(after) > len(before) else 'gone'}"
    for feature in spec.code_features:
        if not same_table(old_spec, spec, feature.table):
            return f"the table {feature.table!r} differs"
    return None


def _move(old_Vd: Tensor, new_Vd: Tensor, moves: list[TableMove]) -> dict[str, dict[str, int]]:
    """Copy rows of one matrix of tables into another; return the counts by table."""
    for move in moves:
        new_Vd[torch.from_numpy(move.new_rows)] = old_Vd[torch.from_numpy(move.old_rows)]
    return {
        move.table: {
            "moved": len(move.new_rows),
            "fresh": move.num_rows - len(move.new_rows),
            "left": move.num_left,
        }
        for move in moves
    }
