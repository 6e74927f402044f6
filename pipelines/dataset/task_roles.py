"""What a dataset file can say of tasks and their labels, and how it is read."""

from dataclasses import dataclass
from typing import Literal

from pipelines.dataset.checked import Entry, Value
from recsys_moe.spec import TargetTransform, TaskKind

EVENTS = ("clicks", "conversions")
Immature = Literal["drop", "weight", "mask", "count"]
_JOINED = "\x1flabel "


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLabel:
    """A label made by joining: whether an impression has an event in time, or how much of it.

    `attribution_hours` is how long an event counts, from the impression's first event in the log
    `after`, or from the impression itself where that is None; None is for ever. With `value`, the
    label is the sum of that column over the impression's events, unknown where there are none.
    """

    log: str
    attribution_hours: float | None
    after: str | None = None
    value: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRole:
    """A task and the source column its label is made of, or the log whose events decide it.

    With `positive`, a listed value is 1 and any other 0; with `negative` too, a value in neither
    list is a fault of the row. Without both, the column holds 0 and 1 or truth values. A label
    of events has a column of no log, which joining adds.
    """

    path: str
    name: str
    column: str
    positive: tuple[Value, ...] | None
    negative: tuple[Value, ...] | None
    space: str
    weight: float
    events: EventLabel | None = None
    kind: TaskKind = "binary"
    transform: TargetTransform = "identity"
    immature: Immature = "drop"
    """What becomes of a row whose window is still open when the logs end."""


def read_task(entry: Entry) -> TaskRole:
    """Read one entry of `tasks`."""
    name = entry.text("name")
    label = entry.raw("label", wanted="a column, {column: …, positive: …} or {log: …}")
    positive = negative = events = None
    column = ""
    if isinstance(label, str):
        column = label
    elif isinstance(label, dict) and label.get("log") is not None:
        events = _event_label(Entry(label, entry.at("label"), entry.faults))
        column = f"{_JOINED}{name}"
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
    kind = entry.text("kind", "binary", choices=("binary", "regression"))
    transform, immature = "identity", "count"
    if kind == "regression":
        transform = entry.text("transform", "identity", choices=("identity", "log1p"))
    if events is not None and events.attribution_hours is not None:
        immature = entry.text("immature", "drop", choices=("drop", "weight", "mask", "count"))
    task = TaskRole(
        path=entry.path,
        name=name,
        column=column,
        positive=positive,
        negative=negative,
        events=events,
        space=entry.text("space", "all", wanted="'all' or a task"),
        weight=entry.number("weight", 1.0, above=0),
        kind=kind or "binary",  # type: ignore[arg-type]  # text() has checked the choices
        transform=transform or "identity",  # type: ignore[arg-type]
        immature=immature or "drop",  # type: ignore[arg-type]
    )
    entry.close()
    return task


def _event_label(entry: Entry) -> EventLabel:
    log = entry.text("log", wanted="a log that the source names")
    hours = after = None
    if log == "conversions" or entry.has("attribution_hours"):
        hours = entry.number("attribution_hours", above=0)
    else:
        entry.raw("attribution_hours", None)
    if entry.has("after"):
        after = entry.text("after")
    else:
        after = entry.raw("after", "clicks" if log == "conversions" else None)
    label = EventLabel(
        log=log, attribution_hours=hours, after=after, value=entry.optional_text("value")
    )
    if log:
        entry.close()
    return label
