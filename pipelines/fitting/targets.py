"""What is learnt of labels from the train split: the scale on which a regression is predicted."""

from pathlib import Path

import polars as pl

from pipelines.batches import batches
from pipelines.dataset.roles import Dataset
from pipelines.dataset.task_roles import TaskRole
from pipelines.fitting.moments import Moments
from pipelines.prepare import prepared_files
from pipelines.rows.labels import known_weight, weight_columns
from recsys_moe.errors import RequestError
from recsys_moe.spec import Task


def fit_tasks(dataset: Dataset, output: Path) -> tuple[Task, ...]:
    """Return the tasks of the spec, regressions with mean and scale of their train labels.

    Mean and 1 / standard deviation are those of the labels, or of log(1 + label), of the train
    rows in the task's space, unweighted: they only fix the unit in which a tower predicts.

    Raises:
        RequestError: A regression has no two different labels there.
    """
    moments = _moments(dataset, output)
    sampling = dataset.sampling
    tasks = []
    for task in dataset.tasks:
        mean, scale = 0.0, 1.0
        if task.name in moments:
            mean, scale = moments[task.name].scaling()
            if not scale:
                wanted = "different labels among the train rows of its space"
                got = f"{moments[task.name].count:,} labels of one value"
                raise RequestError(f"task {task.name!r}", wanted=wanted, got=got)
        shifted = sampling is not None and sampling.correct == "shift"
        thinned = sampling is not None and shifted and sampling.task == task.name
        tasks.append(
            Task(
                name=task.name,
                label=task.name,
                space=task.space,
                weight=task.weight,
                kind=task.kind,
                transform=task.transform,
                mean=mean,
                scale=scale,
                keep_rate=sampling.keep_rate if sampling is not None and thinned else 1.0,
            )
        )
    return tuple(tasks)


def _moments(dataset: Dataset, output: Path) -> dict[str, Moments]:
    """Return those of each regression's labels, to nine digits the same for any threads."""
    regressions = [task for task in dataset.tasks if task.kind == "regression"]
    moments = {task.name: Moments() for task in regressions}
    if not regressions:
        return moments
    train = prepared_files(output, "train")
    names = [task.name for task in dataset.tasks]
    columns = [*names, *weight_columns(names, train)]
    for batch in batches(train, columns):
        for task in regressions:
            value = pl.col(task.name).cast(pl.Float64)
            value = value.log1p() if task.transform == "log1p" else value
            inside = [pl.col(name) == 1 for name in _above(dataset, task)]
            rows = batch.filter(known_weight(task.name, columns) > 0, *inside)
            moments[task.name].add(rows.select(value).to_series())
    return moments


def _above(dataset: Dataset, task: TaskRole) -> list[str]:
    """Return the tasks whose positives a task is about."""
    spaces = {other.name: other.space for other in dataset.tasks}
    above, space = [], task.space
    while space != "all":
        above.append(space)
        space = spaces[space]
    return above
