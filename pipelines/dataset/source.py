"""Reading a dataset file's `source`: one table, or impressions with logs of what followed them."""

from collections.abc import Iterable
from typing import Any

from pipelines.dataset.checked import Entry, shown
from pipelines.dataset.roles import (
    DECLARED_TYPES,
    FORMATS,
    SIMULATED,
    SPLITS,
    TABLE_FORMATS,
    EventLog,
    Source,
)
from pipelines.dataset.task_roles import EVENTS, TaskRole
from pipelines.simulated import funnel


def simulated_source(tasks: Iterable[TaskRole]) -> Source:
    """Return those logs of `pipelines.simulated.funnel` that tasks ask for, and that of clicks."""
    labels = [task.events for task in tasks if task.events is not None]
    asked = {"clicks", *(label.log for label in labels), *(label.after for label in labels)}
    names = [name for name in funnel.LOGS if name in asked]
    plain: dict[str, Any] = {
        "format": "parquet",
        "null_values": (),
        "types": {},
        "allow_empty": True,
    }
    return Source(
        **plain,
        patterns={"all": ("impressions",)},
        path="source",
        join="impression_id",
        until=funnel.UNTIL,
        events=tuple(
            EventLog(
                name=name,
                source=Source(**plain, patterns={"all": (name,)}, path="source"),
                join="impression_id",
                time="ts",
            )
            for name in names
        ),
    )


def read_source(entry: Entry) -> Source:
    """Read where the logs are, in one table or as impressions, clicks and conversions."""
    patterns = {}
    for key in ("path", *SPLITS):
        if entry.has(key):
            patterns["all" if key == "path" else key] = entry.texts(key)
        else:
            entry.raw(key, None)
    types = _types(entry)
    file_format = _format(entry)
    plain: dict[str, Any] = {
        "format": file_format if file_format in FORMATS else "parquet",
        "separator": _separator(entry, file_format),
        "null_values": entry.texts("null_values", ()),
        "types": types,
        "same_columns": entry.flag("same_columns", False),
        "allow_empty": entry.flag("allow_empty", False),
        "max_list": entry.whole("max_list", 10_000, least=1),
    }
    snapshot = _snapshot(entry, file_format)
    if snapshot is not None and not (entry.has("path") or entry.has("impressions")):
        wanted = "one table, source.path or source.impressions"
        entry.faults.note(entry.at("snapshot"), wanted=wanted, got="several")
    join, events = None, []
    if entry.has("impressions"):
        if entry.has("path"):
            wanted = "either this or source.path"
            entry.faults.note(entry.at("impressions"), wanted=wanted, got="both")
        patterns["all"] = entry.texts("impressions")
        join = entry.text("join", "impression_id", wanted="a column of the impressions")
        events = [_event_log(entry, name, join, plain) for name in EVENTS if entry.has(name)]
        events += _other_events(entry, join, plain)
        if not events:
            wanted = "a log of events (clicks, conversions or others) beside that of impressions"
            entry.faults.note(entry.at("clicks"), wanted=wanted, got="nothing")
    else:
        entry.raw("impressions", None)
        entry.raw("join", None)
        for name in (*EVENTS, "events"):
            if entry.has(name):
                wanted = f"the log of impressions, beside that of {name}"
                entry.faults.note(entry.at("impressions"), wanted=wanted, got="nothing")
    for name in (*EVENTS, "events"):
        entry.raw(name, None)
    path = entry.at("impressions" if join else "path")
    until = entry.moment("until") if entry.has("until") else entry.raw("until", None)
    source = Source(
        **plain,
        snapshot=snapshot,
        patterns=patterns,
        path=path,
        join=join,
        events=tuple(events),
        until=until,
    )
    _one_table_each(source, entry)
    entry.close()
    return source


def _other_events(entry: Entry, join: str, plain: dict[str, Any]) -> list[EventLog]:
    """Read the logs of `source.events`, named as the user likes."""
    if not entry.has("events"):
        return []
    below = entry.entry("events")
    logs = []
    for name in entry.mapping("events"):
        if name in EVENTS:
            wanted = f"another name (source.{name} is a log of its own)"
            entry.faults.note(below.at(name), wanted=wanted, got=repr(name))
        logs.append(_event_log(below, name, join, plain))
    return logs


def _event_log(entry: Entry, name: str, join: str, plain: dict[str, Any]) -> EventLog:
    """Read a log given as its files alone or as `{path, join, time, snapshot}`."""
    value, path = entry.raw(name), entry.at(name)
    time, snapshot = "ts", None
    if isinstance(value, dict):
        below = Entry(value, path, entry.faults)
        files, path = below.texts("path"), below.at("path")
        join = below.text("join", join, wanted=f"a column of the {name}")
        time = below.text("time", time, wanted=f"a column of the {name}")
        snapshot = _snapshot(below, plain["format"])
        below.close()
    else:
        files = entry.texts(name)
    source = Source(**plain, snapshot=snapshot, patterns={"all": files}, path=path)
    _one_table_each(source, entry)
    return EventLog(name=name, source=source, join=join, time=time)


def _format(entry: Entry) -> str:
    return entry.text("format", choices=(*FORMATS, SIMULATED))


def _snapshot(entry: Entry, file_format: str) -> int | None:
    """Read which state of a table is meant; files have none."""
    if not entry.has("snapshot"):
        entry.raw("snapshot", None)
        return None
    if file_format not in TABLE_FORMATS:
        wanted = f"no such entry where the format is {file_format}"
        entry.faults.note(entry.at("snapshot"), wanted=wanted, got=shown(entry.raw("snapshot")))
        return None
    return entry.whole("snapshot", least=0, most=2**63 - 1)


def _one_table_each(source: Source, entry: Entry) -> None:
    """Note a list of paths where one table is meant."""
    for split, paths in source.patterns.items():
        if source.format in TABLE_FORMATS and len(paths) > 1:
            path = source.path if split == "all" else entry.at(split)
            entry.faults.note(path, wanted="one table", got=shown(list(paths)))


def _separator(entry: Entry, file_format: str) -> str:
    """Read what stands between the values of CSV, one ASCII character; a comma unless given."""
    wanted = "one ASCII character"
    separator = entry.text("separator", ",", wanted=wanted)
    if len(separator) != 1 or not separator.isascii() or separator in '"\r\n':
        if separator:
            entry.faults.note(entry.at("separator"), wanted=wanted, got=repr(separator))
        return ","
    if entry.has("separator") and file_format in FORMATS and file_format != "csv":
        wanted = f"no such entry where the format is {file_format}"
        entry.faults.note(entry.at("separator"), wanted=wanted, got=repr(separator))
    return separator


def _types(entry: Entry) -> dict[str, str]:
    types = entry.mapping("types")
    for column, declared in types.items():
        if declared not in DECLARED_TYPES:
            entry.faults.note(
                f"{entry.at('types')}.{column}",
                wanted=" or ".join(DECLARED_TYPES),
                got=repr(declared),
                choices=DECLARED_TYPES,
            )
    return {name: kind for name, kind in types.items() if kind in DECLARED_TYPES}
