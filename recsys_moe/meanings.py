"""What each tensor of a model means, found by building it again without any memory.

No architecture is named here: a tensor whose shape grows with one more feature reads the features;
one that is there only with one more task is a task's own; one whose shape grows with one more task
depends on all tasks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from recsys_moe.changes import UNCHANGED
from recsys_moe.spec import FeatureSpec, Task

BuildModel = Callable[[FeatureSpec], nn.Module]
Shapes = dict[str, tuple[int, ...]]

_ANOTHER = "\0another"
_NUMBER = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What a tensor is, whatever the order of the tasks.

    `name` is its name with `*` in place of the number of its task, `task` that task (None for a
    tensor that tasks share).
    """

    name: str
    task: str | None
    reads_features: bool
    depends_on_tasks: bool


def meanings(build_model: BuildModel, spec: FeatureSpec) -> dict[str, Meaning]:
    """Return the meaning of every tensor of the model that a builder makes of a spec.

    Three models are built on the meta device; they hold shapes and draw no random numbers.
    """
    another = replace(spec.features[0], name=_ANOTHER)
    wider = replace(spec, features=(*spec.features, another))
    with_task = replace(spec, tasks=(*spec.tasks, Task(name=_ANOTHER, label=_ANOTHER)))
    with torch.device("meta"):
        shapes, wide, tall = (_shapes(build_model(each)) for each in (spec, wider, with_task))
    owners = _owners(shapes, tall, spec.task_names)
    return {
        name: Meaning(
            name=owners.get(name, (name, None))[0],
            task=owners.get(name, (name, None))[1],
            reads_features=wide.get(name) != shape,
            depends_on_tasks=tall.get(name) != shape,
        )
        for name, shape in shapes.items()
    }


def early_tasks(build_model: BuildModel, spec: FeatureSpec) -> tuple[str, ...]:
    """Return the tasks that a tensor can depend on which is nobody's own.

    They are all tasks but those that came late (`Changes.late_tasks` of the builder).
    """
    changes = getattr(build_model, "keywords", {}).get("changes", UNCHANGED)
    return tuple(task for task in spec.task_names if task not in changes.late_tasks)


def _shapes(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _owners(shapes: Shapes, tall: Shapes, tasks: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Return the numberless name and the task of every tensor that is a task's own.

    The tensors of one more task carry its number. Where another number in a name is the same (of
    a level, of a layer), what comes of replacing it is still of that task, and so no tensor here.
    """
    owners = {}
    for name in tall.keys() - shapes.keys():
        parts = name.split(".")
        for place, part in enumerate(parts):
            if part != str(len(tasks)):
                continue
            for number, task in enumerate(tasks):
                owners[_renamed(parts, place, str(number))] = _renamed(parts, place, _NUMBER), task
    return owners


def _renamed(parts: list[str], place: int, word: str) -> str:
    return ".".join([*parts[:place], word, *parts[place + 1 :]])


def by_meaning(found: Mapping[str, Meaning]) -> dict[tuple[str, str | None], str]:
    """Return the tensors' names by what identifies them across models."""
    return {(meaning.name, meaning.task): name for name, meaning in found.items()}
