"""What a dataset file can say of the past: histories of a user, aggregates of an entity.

Both become columns of the prepared rows, which features then read like any other. Whoever asks
the model looks them up; nothing of them is computed in the exported graph.
"""

from dataclasses import dataclass
from typing import Literal

from pipelines.dataset.checked import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRole:
    """The last events of each user, strictly before an impression, newest first.

    An event is a row on which the task `events` is positive; it happens when its log says, or at
    the time of the impression where the label is a column. Each column of `columns` becomes a list
    column `<name>_<column>`, as long as there are events, at most `last`.
    """

    path: str
    name: str
    of: str
    events: str
    columns: tuple[str, ...]
    last: int
    lag_seconds: float
    max_per_day: int

    @property
    def outputs(self) -> tuple[str, ...]:
        """The list columns it adds."""
        return tuple(f"{self.name}_{column}" for column in self.columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateRole:
    """What the days before an impression's own say of an entity, as one float32 column.

    `count` is the number of rows of the entity; `rate` the mean of the task `target` where it is
    known, drawn to the mean of all train rows by `prior_weight` rows (target encoding); `sum` and
    `mean` are those of the column or task `target`. Only rows of train count unless `refresh` is
    daily; `window_days` None is the whole past; `lag_days` leaves the latest days out.
    """

    path: str
    name: str
    of: str
    kind: Literal["count", "rate", "sum", "mean"]
    target: str | None
    prior_weight: float
    window_days: int | None
    lag_days: int
    refresh: Literal["train", "daily"]


def read_history(entry: Entry) -> HistoryRole:
    """Read one entry of `histories`."""
    role = HistoryRole(
        path=entry.path,
        name=entry.text("name"),
        of=entry.text("of", wanted="a column that names a user"),
        events=entry.text("events", wanted="a task"),
        columns=entry.texts("columns"),
        last=entry.whole("last", least=1, most=512),
        lag_seconds=entry.number("lag_seconds", 0.0, above=-1e-9),
        max_per_day=entry.whole("max_per_day", 2000, least=1),
    )
    entry.close()
    return role


def read_aggregate(entry: Entry) -> AggregateRole:
    """Read one entry of `aggregates`."""
    kind = entry.text("kind", choices=("count", "rate", "sum", "mean"))
    target = None
    if kind == "count":
        entry.raw("target", None)
    else:
        target = entry.text("target", wanted="a task" if kind == "rate" else "a task or a column")
    prior = entry.number("prior_weight", 20.0, above=0) if kind == "rate" else 0.0
    role = AggregateRole(
        path=entry.path,
        name=entry.text("name"),
        of=entry.text("of", wanted="a column that names an entity"),
        kind=kind or "count",  # type: ignore[arg-type]  # text() has checked the choice
        target=target,
        prior_weight=prior,
        window_days=entry.optional_whole("window_days", least=1),
        lag_days=entry.whole("lag_days", 0, least=0, most=3650),
        refresh=entry.text("refresh", "train", choices=("train", "daily")),  # type: ignore[arg-type]
    )
    entry.close()
    return role
