"""Reading a dataset file: where the logs are and which column plays which role.

What a file says is checked here value by value and in `pipelines.rules` as a whole; what its logs
hold, in `pipelines.logs`.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from pipelines.checked import Entry, Faults, Value
from pipelines.roles import (
    EVENTS,
    ROW_ID,
    SIMULATED,
    SPLITS,
    BucketizedRole,
    CategoricalRole,
    Dataset,
    EventLabel,
    FeatureRole,
    HashedRole,
    NumericRole,
    Simulation,
    Split,
    TaskRole,
)
from pipelines.source import read_source, simulated_source
from recsys_moe.spec import FIRST_OOV

_JOINED = "\x1flabel "


def read_dataset(value: Any, faults: Faults) -> Dataset:
    """Read a dataset file's plain values; what is wrong is noted in `faults`."""
    entry = Entry(value, "", faults)
    source = entry.entry("source")
    is_simulated = source.raw("format", None) == SIMULATED
    if is_simulated:
        source.close()
    dataset = Dataset(
        name=entry.text("name"),
        source=simulated_source() if is_simulated else read_source(source),
        simulation=_simulation(entry) if is_simulated else None,
        split=_split(entry.entry("split")),
        keys=entry.texts("keys", ()) or (ROW_ID,),
        user=entry.optional_text("user"),
        row_weight=entry.optional_text("row_weight"),
        tasks=tuple(_task(task) for task in entry.entries("tasks")),
        features=tuple(role for item in entry.entries("features") for role in _features(item)),
    )
    entry.close()
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
    valid_share = test_share = 0.0
    seed = 0
    if by == "column":
        values = {split: entry.values(split) for split in SPLITS}
    elif by == "file":
        if entry.has("valid_share"):
            valid_share = entry.number("valid_share", above=0, upto=0.9)
        else:
            entry.raw("valid_share", None)
    elif by:
        valid_share = entry.number("valid_share", 0.1, above=0, upto=0.9)
        test_share = entry.number("test_share", 0.1, above=0, upto=0.9)
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
    )


def _task(entry: Entry) -> TaskRole:
    name = entry.text("name")
    label = entry.raw("label", wanted="a column, {column: …, positive: …} or {log: …}")
    positive = negative = events = None
    column = ""
    if isinstance(label, str):
        column = label
    elif isinstance(label, dict) and label.get("log") is not None:
        below = Entry(label, entry.at("label"), entry.faults)
        log = below.text("log", choices=EVENTS)
        hours = below.number("attribution_hours", above=0) if log == "conversions" else None
        if log:
            below.close()
        column, events = f"{_JOINED}{name}", EventLabel(log=log, attribution_hours=hours)
    elif label is not None:
        below = Entry(label, entry.at("label"), entry.faults)
        below.raw("log", None)
        column = below.text("column")
        positive = (
            below.values("positive") if below.has("positive") else below.raw("positive", None)
        )
        negative = (
            below.values("negative") if below.has("negative") else below.raw("negative", None)
        )
        below.close()
    task = TaskRole(
        path=entry.path,
        name=name,
        column=column,
        positive=positive,
        negative=negative,
        events=events,
        space=entry.text("space", "all", wanted="'all' or a task"),
        weight=entry.number("weight", 1.0, above=0),
    )
    entry.close()
    return task


def _features(entry: Entry) -> Iterator[FeatureRole]:
    """Yield the features of one entry: one per column where `columns` lists several."""
    kinds = ("categorical", "hashed", "bucketized", "numeric")
    kind = entry.text("kind", choices=kinds)
    if entry.has("columns"):
        pairs = [(column, column) for column in entry.texts("columns")]
        for other in ("name", "column"):
            if entry.has(other):
                entry.faults.note(entry.at(other), wanted="either this or columns", got="both")
            entry.raw(other, None)
    else:
        column = entry.text("column", wanted="a column (or columns: several)")
        pairs = [(entry.text("name", column or None), column)]
        entry.raw("columns", None)
    options = _options(kind, entry)
    if kind:
        entry.close()
    for name, column in pairs:
        common: dict[str, Any] = {"path": entry.path, "name": name, "column": column}
        if kind in ("categorical", "hashed"):
            table = options["table"] or name
            role = CategoricalRole if kind == "categorical" else HashedRole
            yield role(**common, **{**options, "table": table})
        elif kind == "bucketized":
            yield BucketizedRole(**common, **options)
        elif kind == "numeric":
            yield NumericRole(**common, **options)


def _options(kind: str, entry: Entry) -> dict[str, Any]:
    """Return what a kind of feature can be told beyond its name and column."""
    if kind in ("categorical", "hashed"):
        shared = {
            "table": entry.optional_text("table"),
            "max_len": entry.optional_whole("max_len", least=1),
        }
        if kind == "hashed":
            return shared | {"num_buckets": entry.whole("num_buckets", least=1)}
        return shared | {
            "min_frequency": entry.whole("min_frequency", 1, least=1),
            "num_oov": entry.whole("num_oov", 1, least=1, most=2**31 - 16 - FIRST_OOV),
            "max_size": entry.optional_whole("max_size", least=1),
        }
    if kind == "bucketized":
        return {"edges": _edges(entry)}
    if kind == "numeric":
        return {
            "log1p": entry.flag("log1p", False),
            "clip": entry.number("clip", 8.0, above=0),
            "missing_flag": entry.flag("missing_flag", False),
        }
    return {"table": None}


def _edges(entry: Entry) -> tuple[float, ...]:
    """Return bucket edges as float32 values, finite and strictly increasing."""
    given = entry.values("edges")
    numbers = [x for x in given if isinstance(x, (int, float)) and not isinstance(x, bool)]
    with np.errstate(over="ignore"):
        edges = tuple(float(np.float32(x)) for x in numbers)
    rising = all(a < b for a, b in pairwise(edges))
    if (given and len(numbers) < len(given)) or not np.isfinite(edges).all() or not rising:
        wanted = "finite numbers, each above the one before it (as float32)"
        entry.faults.note(entry.at("edges"), wanted=wanted, got=repr(list(given)))
    elif entry.has("edges") and not edges:
        entry.faults.note(entry.at("edges"), wanted="at least one number", got="none")
    return edges
