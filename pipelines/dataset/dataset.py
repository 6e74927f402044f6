"""Reading a dataset file: where the logs are and which column plays which role.

What a file says is checked here value by value and in `pipelines.dataset.rules` as a whole; what
its logs hold, in `pipelines.logs`.
"""

from dataclasses import replace
from typing import Any

from pipelines.dataset.checked import Entry, Faults, Value
from pipelines.dataset.feature_roles import note_expression, read_features, share_settings
from pipelines.dataset.past_roles import read_aggregate, read_history
from pipelines.dataset.roles import (
    ROW_ID,
    SIMULATED,
    SPLITS,
    Dataset,
    RowRule,
    Sampling,
    Simulation,
    Split,
)
from pipelines.dataset.source import read_source, simulated_source
from pipelines.dataset.task_roles import read_task
from recsys_moe.expression import ExpressionError, columns_of, parse


def read_dataset(value: Any, faults: Faults) -> Dataset:
    """Read a dataset file's plain values; what is wrong is noted in `faults`."""
    entry = Entry(value, "", faults)
    source = entry.entry("source")
    is_simulated = source.raw("format", None) == SIMULATED
    if is_simulated:
        source.close()
    tasks = tuple(read_task(task) for task in entry.entries("tasks"))
    dataset = Dataset(
        name=entry.text("name"),
        source=simulated_source(tasks) if is_simulated else read_source(source),
        simulation=_simulation(entry) if is_simulated else None,
        split=_split(entry.entry("split")),
        keys=entry.texts("keys", ()) or (ROW_ID,),
        user=entry.optional_text("user"),
        row_weight=entry.optional_text("row_weight"),
        tasks=tasks,
        features=share_settings(
            role for item in entry.entries("features") for role in read_features(item)
        ),
        time=entry.optional_text("time"),
        histories=tuple(read_history(item) for item in entry.optional_entries("histories")),
        aggregates=tuple(read_aggregate(item) for item in entry.optional_entries("aggregates")),
        sampling=_sampling(entry.entry("sampling")) if entry.has("sampling") else None,
        unique_keys=entry.flag("unique_keys", False),
        rules=tuple(_rule(item) for item in entry.optional_entries("rules")),
    )
    if dataset.sampling is None:
        entry.raw("sampling", None)
    entry.close()
    if dataset.time is None and dataset.split.by == "time":
        dataset = replace(dataset, time=dataset.split.column)
    if dataset.time is None and is_simulated:
        dataset = replace(dataset, time="ts")
    return dataset


def _simulation(entry: Entry) -> Simulation:
    return Simulation(
        rows=entry.whole("rows", 200_000, least=1),
        seed=entry.whole("seed", 1, least=0, most=2**63 - 1),
        correlation=entry.number("correlation", 0.5, above=-1, upto=1),
    )


def _split(entry: Entry) -> Split:
    by = entry.text("by", choices=("file", "column", "hash", "time"))
    column = None if by in ("file", "") else entry.text("column")
    values: dict[str, tuple[Value, ...]] = {}
    valid_share = test_share = gap_hours = 0.0
    starts = None
    seed = 0
    if by == "column":
        values = {split: entry.values(split) for split in SPLITS}
    elif by == "file":
        if entry.has("valid_share"):
            valid_share = entry.number("valid_share", above=0, upto=0.9)
        else:
            entry.raw("valid_share", None)
    elif by == "time" and (entry.has("train_end") or entry.has("valid_end")):
        starts = entry.moment("train_end"), entry.moment("valid_end")
        if starts[0] >= starts[1] > 0:
            wanted = "a moment after train_end"
            entry.faults.note(entry.at("valid_end"), wanted=wanted, got="one that is not")
    elif by:
        valid_share = entry.number("valid_share", 0.1, above=0, upto=0.9)
        test_share = entry.number("test_share", 0.1, above=0, upto=0.9)
    if by == "time":
        gap_hours = entry.number("gap_hours", 0.0, above=-1e-9)
        for key in ("train_end", "valid_end"):
            entry.raw(key, None)
    if by in ("file", "hash"):
        seed = entry.whole("seed", 7, least=0, most=2**63 - 1)
    if by:
        entry.close()
    return Split(
        by=by or "file",  # type: ignore[arg-type]  # text() has checked the choice
        column=column,
        values=values,
        valid_share=valid_share,
        test_share=test_share,
        seed=seed,
        starts=starts,
        gap_hours=gap_hours,
    )


def _rule(entry: Entry) -> RowRule:
    text = entry.text("expression")
    columns: tuple[str, ...] = ()
    try:
        columns = columns_of(parse(text))
    except ExpressionError as error:
        if text:
            note_expression(entry.path, error, entry.faults)
    rule = RowRule(path=entry.path, name=entry.text("name"), expression=text, columns=columns)
    entry.close()
    return rule


def _sampling(entry: Entry) -> Sampling:
    sampling = Sampling(
        task=entry.text("negatives_of", wanted="a binary task"),
        keep_rate=entry.number("keep_rate", above=0, upto=1),
        correct=entry.text("correct", "shift", choices=("shift", "weight")),  # type: ignore[arg-type]
        seed=entry.whole("seed", 7, least=0, most=2**63 - 1),
    )
    entry.close()
    return sampling
