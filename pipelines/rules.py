"""What a dataset file must not say: names that collide, labels as inputs, tables that disagree."""

from pipelines.checked import Faults, shown
from pipelines.roles import (
    ROW_ID,
    BucketizedRole,
    CategoricalRole,
    Dataset,
    HashedRole,
    NumericRole,
)
from recsys_moe.spec import Column


def check_dataset(dataset: Dataset, faults: Faults) -> None:
    """Note every contradiction within a dataset file in `faults`."""
    if not faults.under("source", "split"):
        _source_and_split(dataset, faults)
        _events(dataset, faults)
    _tasks(dataset, faults)
    _features(dataset, faults)
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


def _features(dataset: Dataset, faults: Faults) -> None:
    first: dict[str, CategoricalRole | HashedRole | BucketizedRole] = {}
    lengths: dict[str, str] = {}
    for feature in dataset.features:
        if isinstance(feature, NumericRole) or not feature.table:
            continue
        known = first.setdefault(feature.table, feature)
        if known.settings != feature.settings:
            faults.note(
                f"{feature.path}.table",
                wanted=f"the settings of {known.name!r}, which has the table {known.table!r} too",
                got=f"{feature.settings}, not {known.settings}",
            )
        if not isinstance(feature, BucketizedRole):
            is_list = "a list" if feature.max_len else "a scalar"
            if lengths.setdefault(feature.column, is_list) != is_list:
                wanted = f"{feature.column!r} as {lengths[feature.column]}, as before"
                faults.note(f"{feature.path}.max_len", wanted=wanted, got=is_list)


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
        if feature.column in barred:
            wanted = "a column that is known when the model is asked"
            got = f"{feature.column!r}, {barred[feature.column]}"
            faults.note(f"{feature.path}.column", wanted=wanted, got=got)
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
    kept |= {f.column: f"{f.path}.column" for f in dataset.features}
    lists = {f.column for f in dataset.features if getattr(f, "max_len", None)}
    outputs = {f"logit_{task.name}" for task in dataset.tasks}
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
        if task.name in {*kept, ROW_ID, dataset.row_weight} - sources:
            wanted = "a name that no kept column has (labels are kept under it)"
            faults.note(f"{task.path}.name", wanted=wanted, got=repr(task.name))
        if task.name in kept and task.name in sources:
            wanted = "a column that is not a label"
            faults.note(kept[task.name], wanted=wanted, got=repr(task.name))


def check_columns(dataset: Dataset, columns: dict[str, Column], faults: Faults) -> None:
    """Note every column whose type does not suit its role."""
    for path, name in dataset.roles():
        column = columns.get(name)
        if column is not None and column.is_list and not path.startswith("features"):
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
    types: dict[str, str] = {}
    for feature in dataset.features:
        column = columns.get(feature.column)
        if column is None:
            continue
        path = f"{feature.path}.column"
        if isinstance(feature, (NumericRole, BucketizedRole)):
            if column.is_list or column.type == "string":
                got = f"{column.name!r}, which holds {'lists' if column.is_list else 'strings'}"
                faults.note(path, wanted="a column of numbers", got=got)
            continue
        if column.type == "float32":
            got = f"{column.name!r}, which holds floats"
            faults.note(path, wanted="integers or strings (bucketized takes floats)", got=got)
        if column.is_list != (feature.max_len is not None):
            wanted = "a max_len" if column.is_list else "no max_len"
            got = f"{column.name!r}, which holds {'lists' if column.is_list else 'single values'}"
            faults.note(f"{feature.path}.max_len", wanted=wanted, got=got)
        if types.setdefault(feature.table, column.type) != column.type:
            wanted = f"{types[feature.table]}, as the other columns of table {feature.table!r}"
            got = f"{column.name!r} of type {column.type}"
            faults.note(path, wanted=wanted, got=got)
