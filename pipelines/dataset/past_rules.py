"""What histories and aggregates must not say, and the types of the columns they add."""

from pipelines.dataset.checked import Faults
from pipelines.dataset.past_roles import AggregateRole, HistoryRole
from pipelines.dataset.roles import ROW_ID, Dataset
from recsys_moe.spec import Column


def past_columns(dataset: Dataset, columns: dict[str, Column]) -> dict[str, Column]:
    """Return the columns that histories and aggregates add, as far as their sources are known."""
    added = {}
    for history in dataset.histories:
        for column, name in zip(history.columns, history.outputs, strict=True):
            if column in columns:
                added[name] = Column(name=name, type=columns[column].type, is_list=True)
    for aggregate in dataset.aggregates:
        added[aggregate.name] = Column(name=aggregate.name, type="float32")
    return added


def check_past(dataset: Dataset, columns: dict[str, Column], faults: Faults) -> None:
    """Note what histories and aggregates cannot be computed from."""
    if (dataset.histories or dataset.aggregates) and dataset.time is None:
        wanted = "the column that says when an impression was shown (histories look back from it)"
        faults.note("time", wanted=wanted, got="nothing")
    for task in dataset.tasks:
        if task.immature != "count" and dataset.time is None:
            wanted = "the column that says when an impression was shown"
            wanted += f" (or {task.path}.immature: count)"
            faults.note("time", wanted=wanted, got="nothing")
    timed = columns.get(dataset.time or "")
    if timed is not None and (timed.type != "int64" or timed.is_list):
        wanted = "dates, times or integers (source.types can declare datetime)"
        faults.note("time", wanted=wanted, got=f"{timed.name!r} of type {timed.type}")
    for history in dataset.histories:
        _check_history(dataset, history, columns, faults)
    for aggregate in dataset.aggregates:
        _check_aggregate(dataset, aggregate, columns, faults)
    taken = [*dataset.past_columns]
    for path, name in (
        *(
            (f"{history.path}.name", name)
            for history in dataset.histories
            for name in history.outputs
        ),
        *((f"{aggregate.path}.name", aggregate.name) for aggregate in dataset.aggregates),
    ):
        is_source = name in columns or name == ROW_ID or name in {t.name for t in dataset.tasks}
        if taken.count(name) > 1 or is_source:
            faults.note(path, wanted="names that no other column has", got=repr(name))


def _check_history(
    dataset: Dataset, history: HistoryRole, columns: dict[str, Column], faults: Faults
) -> None:
    tasks = {task.name: task for task in dataset.tasks}
    task = tasks.get(history.events)
    if history.events and (task is None or task.kind != "binary"):
        binary = [name for name, task in tasks.items() if task.kind == "binary"]
        wanted = "a binary task: " + ", ".join(binary)
        faults.note(
            f"{history.path}.events", wanted=wanted, got=repr(history.events), choices=binary
        )
    _check_key(f"{history.path}.of", columns.get(history.of), faults)
    for number, name in enumerate(history.columns):
        if name in ("key", "time", "row_id"):
            wanted = "a column with another name (these three are the history's own)"
            faults.note(f"{history.path}.columns[{number}]", wanted=wanted, got=repr(name))
        column = columns.get(name)
        if column is not None and (column.is_list or column.dim or column.type == "float32"):
            wanted = "a column of single integers or strings"
            faults.note(f"{history.path}.columns[{number}]", wanted=wanted, got=repr(name))


def _check_aggregate(
    dataset: Dataset, aggregate: AggregateRole, columns: dict[str, Column], faults: Faults
) -> None:
    path, target = aggregate.path, aggregate.target
    _check_key(f"{path}.of", columns.get(aggregate.of), faults)
    tasks = [task.name for task in dataset.tasks]
    if target is None or target in tasks:
        return
    column = columns.get(target)
    if aggregate.kind == "rate":
        faults.note(f"{path}.target", wanted="a task", got=repr(target), choices=tasks)
    elif column is not None and (column.is_list or column.dim or column.type == "string"):
        faults.note(f"{path}.target", wanted="a task or a column of numbers", got=repr(target))


def _check_key(path: str, column: Column | None, faults: Faults) -> None:
    if column is not None and (column.is_list or column.type == "float32"):
        wanted = "a column of single integers or strings"
        faults.note(path, wanted=wanted, got=repr(column.name))
