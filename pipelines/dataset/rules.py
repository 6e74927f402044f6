"""What a dataset file must not say: names that collide, labels as inputs, tables that disagree."""

from pipelines.dataset.checked import Faults, shown
from pipelines.dataset.feature_roles import note_expression
from pipelines.dataset.feature_rules import check_features
from pipelines.dataset.roles import ROW_ID, Dataset
from pipelines.dataset.task_rules import check_kinds, check_sampling
from pipelines.rows.labels import weight_column
from recsys_moe.expression import ExpressionError
from recsys_moe.expression_types import resolve
from recsys_moe.spec import Column


def check_dataset(dataset: Dataset, faults: Faults) -> None:
    """Note every contradiction within a dataset file in `faults`."""
    if not faults.under("source", "split"):
        _source_and_split(dataset, faults)
        _events(dataset, faults)
    _tasks(dataset, faults)
    check_kinds(dataset, faults)
    check_sampling(dataset, faults)
    check_features(dataset, faults)
    _leaks(dataset, faults)
    _names(dataset, faults)


def _source_and_split(dataset: Dataset, faults: Faults) -> None:
    given, split = dataset.source.patterns, dataset.split
    by_file = split.by == "file"
    for key in ("train", "test") if by_file else ("all",):
        if not given.get(key):
            path = dataset.source.path if key == "all" else f"source.{key}"
            faults.note(path, wanted=f"files (the split is by {split.by})", got="nothing")
    for key in given.keys() & ({"all"} if by_file else {"train", "valid", "test"}):
        path = dataset.source.path if key == "all" else f"source.{key}"
        wanted = "no such entry where the split is by " + split.by
        faults.note(path, wanted=wanted, got=shown(list(given[key])))
    if by_file and ("valid" in given) == bool(split.valid_share):
        got = "both" if split.valid_share else "neither"
        faults.note("split.valid_share", wanted="either this or source.valid", got=got)
    if split.by in ("hash", "time") and split.valid_share + split.test_share > 0.95:
        shares = f"{split.valid_share:g} and {split.test_share:g}"
        wanted = "valid_share and test_share that leave rows to train on"
        faults.note("split", wanted=wanted, got=shares)
    listed = [value for values in split.values.values() for value in values]
    for value in dict.fromkeys(listed):
        if listed.count(value) > 1:
            faults.note("split", wanted="each value in one list", got=f"{shown(value)} twice")


def _events(dataset: Dataset, faults: Faults) -> None:
    """Note labels of events that no log holds."""
    logs = [event.name for event in dataset.source.events]
    for task in dataset.tasks:
        if task.events is not None and task.events.log and task.events.log not in logs:
            wanted = f"a log that the source names (source.{task.events.log})"
            got = repr(task.events.log)
            faults.note(f"{task.path}.label.log", wanted=wanted, got=got, choices=logs)


def _tasks(dataset: Dataset, faults: Faults) -> None:
    tasks = {task.name: task for task in dataset.tasks}
    for task in dataset.tasks:
        if task.negative is not None and task.positive is None:
            wanted, path = "positive beside negative", f"{task.path}.label"
            faults.note(path, wanted=wanted, got="negative only")
        both = set(task.positive or ()) & set(task.negative or ())
        for value in sorted(both, key=str):
            wanted = "each value in one list"
            faults.note(f"{task.path}.label", wanted=wanted, got=f"{shown(value)} in both")
        if task.name == "all":
            faults.note(
                f"{task.path}.name", wanted="a name other than the space of all", got="'all'"
            )
        seen, space = [task.name], task.space
        while space not in ("all", ""):
            if space not in tasks:
                if len(seen) == 1:
                    choices = ["all", *(name for name in tasks if name != task.name)]
                    wanted = "one of " + ", ".join(choices)
                    faults.note(
                        f"{task.path}.space", wanted=wanted, got=repr(space), choices=choices
                    )
                break
            if space in seen:
                if space == task.name:
                    wanted = "a space that does not lead back to this task"
                    faults.note(f"{task.path}.space", wanted=wanted, got=repr(task.space))
                break
            seen.append(space)
            space = tasks[space].space


def _leaks(dataset: Dataset, faults: Faults) -> None:
    """Refuse inputs that hold the answer, or how rows were chosen."""
    barred = {event.time: f"the time of {event.name}" for event in dataset.source.events}
    barred |= {task.column: f"the label of {task.name!r}" for task in dataset.tasks}
    if dataset.split.column:
        barred[dataset.split.column] = "the split"
    if dataset.row_weight:
        barred[dataset.row_weight] = "the row weight"
    barred[ROW_ID] = "the number of the row"
    for feature in dataset.features:
        for column in feature.columns:
            if column in barred:
                wanted = "a column that is known when the model is asked"
                got = f"{column!r}, {barred[column]}"
                faults.note(feature.path_of_column, wanted=wanted, got=got)
    for path, column in dataset.roles():
        if column == ROW_ID and not path.startswith("features"):
            faults.note(path, wanted="a column of the source", got=f"{ROW_ID!r}, which is added")


def _names(dataset: Dataset, faults: Faults) -> None:
    for what, items in (("features", dataset.features), ("tasks", dataset.tasks)):
        names = [item.name for item in items]
        for item in items:
            if item.name and names.count(item.name) > 1:
                wanted = f"each name once in {what}"
                got = f"{item.name!r} {names.count(item.name)} times"
                faults.note(f"{item.path}.name", wanted=wanted, got=got)
    if len(set(dataset.keys)) < len(dataset.keys):
        faults.note("keys", wanted="each column once", got=repr(list(dataset.keys)))
    kept = {column: path for path, column in dataset.roles() if path.startswith(("keys", "user"))}
    kept |= {column: f.path_of_column for f in dataset.features for column in f.columns}
    lists = {f.columns[0] for f in dataset.features if getattr(f, "max_len", None)}
    outputs = {f"logit_{task.name}" for task in dataset.tasks}
    outputs |= {f"y_{task.name}" for task in dataset.tasks if task.kind == "regression"}
    for column, path in kept.items():
        if column.startswith("p_") or column in outputs:
            wanted = "a name that no output of a model can have"
            faults.note(path, wanted=wanted, got=repr(column))
        for suffix in ("_len", "_ids"):
            if column.endswith(suffix) and column.removesuffix(suffix) in lists:
                wanted = f"a name that the list {column.removesuffix(suffix)!r} does not need"
                faults.note(path, wanted=wanted, got=repr(column))
    sources = {task.column for task in dataset.tasks}
    for task in dataset.tasks:
        if weight_column(task.name) in {*kept, dataset.row_weight}:
            wanted = f"a name other than that of the weights of {task.name!r}"
            path = kept.get(weight_column(task.name), "row_weight")
            faults.note(path, wanted=wanted, got=repr(weight_column(task.name)))
        if task.name in {*kept, ROW_ID, dataset.row_weight} - sources:
            wanted = "a name that no kept column has (labels are kept under it)"
            faults.note(f"{task.path}.name", wanted=wanted, got=repr(task.name))
        if task.name in kept and task.name in sources:
            wanted = "a column that is not a label"
            faults.note(kept[task.name], wanted=wanted, got=repr(task.name))


def check_rules(dataset: Dataset, columns: dict[str, Column], faults: Faults) -> None:
    """Note rules of rows that are no expression over the columns there are."""
    for rule in dataset.rules:
        if not faults.under(rule.path) and all(name in columns for name in rule.columns):
            try:
                resolve(rule.expression, columns.values())
            except ExpressionError as error:
                note_expression(rule.path, error, faults)


def check_columns(dataset: Dataset, columns: dict[str, Column], faults: Faults) -> None:
    """Note every column whose type does not suit its role."""
    for path, name in dataset.roles():
        column = columns.get(name)
        if path.startswith("features") or column is None:
            continue
        if column.is_list or column.dim:
            faults.note(path, wanted="a column of single values", got=f"{name!r}, a list")
    timed = columns.get(dataset.split.column or "")
    if timed is not None and dataset.split.by == "time" and timed.type != "int64":
        wanted = "dates, times or integers (source.types can declare datetime)"
        faults.note("split.column", wanted=wanted, got=f"{timed.name!r} of type {timed.type}")
    hashed: list[tuple[str, str | None]] = [
        ("user", dataset.user),
        ("source.join", dataset.source.join),
        *((f"keys[{i}]", k) for i, k in enumerate(dataset.keys)),
    ]
    if dataset.split.by == "hash":
        hashed.append(("split.column", dataset.split.column))
    for path, exact in hashed:
        if exact and exact != ROW_ID and exact in columns and columns[exact].type == "float32":
            faults.note(path, wanted="integers or strings", got=f"{exact!r}, which holds floats")
    weight = columns.get(dataset.row_weight or "")
    if weight is not None and weight.type == "string":
        faults.note("row_weight", wanted="numbers", got=f"{weight.name!r}, which holds strings")
