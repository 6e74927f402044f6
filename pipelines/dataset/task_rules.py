"""What a dataset file must not say of the kinds of its tasks, and of thinning out negatives."""

from collections.abc import Iterator, Mapping

from pipelines.dataset.checked import Faults
from pipelines.dataset.roles import Dataset
from pipelines.dataset.task_roles import TaskRole


def check_kinds(dataset: Dataset, faults: Faults) -> None:
    """Note labels that their task's kind cannot have, and spaces that are no set of rows."""
    tasks = {task.name: task for task in dataset.tasks}
    for task in dataset.tasks:
        path = f"{task.path}.label"
        if task.kind == "regression":
            listed = next((n for n in ("positive", "negative") if getattr(task, n) is not None), "")
            if listed:
                wanted = "no such list: a regression learns the number itself"
                faults.note(f"{path}.{listed}", wanted=wanted, got="a list")
            if task.events is not None and task.events.value is None:
                wanted = "a column of the log that holds the amount"
                faults.note(f"{path}.value", wanted=wanted, got="nothing")
            elif task.events is not None:
                labels = [t.events for t in dataset.tasks if t.events]
                first = next(e.value for e in labels if e.log == task.events.log and e.value)
                if first != task.events.value:
                    wanted = f"{first!r}, as another task of this log"
                    faults.note(f"{path}.value", wanted=wanted, got=repr(task.events.value))
        elif task.events is not None and task.events.value is not None:
            wanted = "no value (kind: regression learns amounts)"
            faults.note(f"{path}.value", wanted=wanted, got=repr(task.events.value))
        if task.kind == "regression" and task.immature == "weight":
            wanted = "drop, mask or count (weights are those of a binary label)"
            faults.note(f"{task.path}.immature", wanted=wanted, got="'weight'")
        space = tasks.get(task.space)
        if space is not None and space.kind == "regression":
            binary = ["all", *(t.name for t in dataset.tasks if t.kind == "binary" and t != task)]
            got = f"{space.name!r}, a regression"
            wanted = "'all' or a binary task"
            faults.note(f"{task.path}.space", wanted=wanted, got=got, choices=binary)


def check_sampling(dataset: Dataset, faults: Faults) -> None:
    """Note a sampling whose task cannot be thinned out, or whose shift leaves another task wrong.

    A shift of one logit is right for that task, and changes nothing for those that live among its
    positives; every other task has lost rows that nothing would make up for.
    """
    sampling = dataset.sampling
    if sampling is None or not sampling.task:
        return
    tasks = {task.name: task for task in dataset.tasks}
    sampled, path = tasks.get(sampling.task), "sampling.negatives_of"
    fit = [t.name for t in dataset.tasks if t.kind == "binary" and t.space == "all"]
    wanted = "a binary task in the space of all"
    if sampled is None:
        faults.note(path, wanted=wanted, got=repr(sampling.task), choices=fit)
    elif sampled.kind != "binary":
        faults.note(path, wanted=wanted, got=f"{sampled.name!r}, a regression", choices=fit)
    elif sampled.space != "all":
        got = f"{sampled.name!r}, in the space of {sampled.space!r}"
        faults.note(path, wanted=wanted, got=got, choices=fit)
    elif sampling.correct == "shift":
        for task in dataset.tasks:
            if sampled.name not in (task.name, *_spaces(tasks, task)):
                wanted = (
                    f"correct: weight, as {task.name!r} is not in the space of {sampled.name!r}"
                )
                faults.note("sampling.correct", wanted=wanted, got="shift")


def _spaces(tasks: Mapping[str, TaskRole], task: TaskRole) -> Iterator[str]:
    """Yield the tasks above a task; where they lead in a circle, each once."""
    seen = {task.name}
    while task.space in tasks and task.space not in seen:
        seen.add(task.space)
        yield task.space
        task = tasks[task.space]
