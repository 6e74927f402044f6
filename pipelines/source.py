"""Reading a dataset file's `source`: one table, or impressions with logs of what followed them."""

from typing import Any

from pipelines.checked import Entry
from pipelines.roles import DECLARED_TYPES, EVENTS, SIMULATED, SPLITS, EventLog, Source


def simulated_source() -> Source:
    """Return the three logs as `pipelines.funnel` writes them."""
    plain: dict[str, Any] = {"format": "parquet", "null_values": (), "types": {}}
    return Source(
        **plain,
        patterns={"all": ("impressions",)},
        path="source",
        join="impression_id",
        events=tuple(
            EventLog(
                name=name,
                source=Source(**plain, patterns={"all": (name,)}, path="source"),
                join="impression_id",
                time="ts",
            )
            for name in EVENTS
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
        "format": "csv" if file_format == "csv" else "parquet",
        "separator": _separator(entry, file_format),
        "null_values": entry.texts("null_values", ()),
        "types": types,
    }
    join, events = None, []
    if entry.has("impressions"):
        if entry.has("path"):
            wanted = "either this or source.path"
            entry.faults.note(entry.at("impressions"), wanted=wanted, got="both")
        patterns["all"] = entry.texts("impressions")
        join = entry.text("join", "impression_id", wanted="a column of the impressions")
        events = [_event_log(entry, name, join, plain) for name in EVENTS if entry.has(name)]
        if not entry.has("clicks"):
            wanted = "the log of clicks, beside that of impressions"
            entry.faults.note(entry.at("clicks"), wanted=wanted, got="nothing")
    else:
        entry.raw("impressions", None)
        entry.raw("join", None)
        for name in EVENTS:
            if entry.has(name):
                wanted = f"the log of impressions, beside that of {name}"
                entry.faults.note(entry.at("impressions"), wanted=wanted, got="nothing")
    for name in EVENTS:
        entry.raw(name, None)
    path = entry.at("impressions" if join else "path")
    source = Source(**plain, patterns=patterns, path=path, join=join, events=tuple(events))
    entry.close()
    return source


def _event_log(entry: Entry, name: str, join: str, plain: dict[str, Any]) -> EventLog:
    """Read a log given as its files alone or as `{path, join, time}`."""
    value, path = entry.raw(name), entry.at(name)
    time = "ts"
    if isinstance(value, dict):
        below = Entry(value, path, entry.faults)
        files, path = below.texts("path"), below.at("path")
        join = below.text("join", join, wanted=f"a column of the {name}")
        time = below.text("time", time, wanted=f"a column of the {name}")
        below.close()
    else:
        files = entry.texts(name)
    source = Source(**plain, patterns={"all": files}, path=path)
    return EventLog(name=name, source=source, join=join, time=time)


def _format(entry: Entry) -> str:
    return entry.text("format", choices=("parquet", "csv", SIMULATED))


def _separator(entry: Entry, file_format: str) -> str:
    """Read what stands between the values of CSV, one ASCII character; a comma unless given."""
    wanted = "one ASCII character"
    separator = entry.text("separator", ",", wanted=wanted)
    if len(separator) != 1 or not separator.isascii() or separator in '"\r\n':
        if separator:
            entry.faults.note(entry.at("separator"), wanted=wanted, got=repr(separator))
        return ","
    if entry.has("separator") and file_format == "parquet":
        wanted = "no such entry where the format is parquet"
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
