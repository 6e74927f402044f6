"""A dataset file and its logs, opened and checked together: all faults at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.dataset.checked import Faults
from pipelines.dataset.dataset import read_dataset
from pipelines.dataset.feature_rules import check_feature_columns
from pipelines.dataset.past_rules import check_past, past_columns
from pipelines.dataset.roles import Dataset, EventLog, Source
from pipelines.dataset.rules import check_columns, check_dataset, check_rules
from pipelines.encoding.vectors import vector_columns
from pipelines.logs.log_columns import check_declared, check_same_columns, column_types
from pipelines.logs.log_files import open_logs
from pipelines.logs.logs import LogFile
from pipelines.rows.labels import check_tasks, check_values
from pipelines.simulated import funnel
from pipelines.work import Events
from recsys_moe.files import SUCCESS
from recsys_moe.spec import Column


@dataclass(frozen=True, slots=True)
class Opened:
    """A dataset, the files of its rows and the types of the columns it names; its event logs."""

    dataset: Dataset
    logs: list[LogFile]
    columns: dict[str, Column]
    events: list[Events]

    @property
    def files(self) -> list[LogFile]:
        """All files, those of clicks and conversions too."""
        return [*self.logs, *(log for event in self.events for log in event.files)]


def open_dataset(value: Any, folder: Path, *, raw: Path | None = None) -> Opened:
    """Read a dataset file's values and the types of its logs; report all faults at once.

    Logs that are yet to be simulated are judged by the columns they will have.

    Args:
        value: The dataset file's plain values.
        folder: Where relative paths start.
        raw: Where simulated logs are or will be.

    Raises:
        RequestError: The dataset file has faults, or a log cannot be read.
    """
    name = value.get("name") if isinstance(value, dict) else None
    faults = Faults(f"dataset {name!r}" if name else "dataset")
    dataset = read_dataset(value, faults)
    check_dataset(dataset, faults)
    if dataset.simulation is not None:
        folder = raw or folder
    logs = _files(dataset, dataset.source, "impressions", folder, faults)
    if not logs:
        faults.raise_any()
    wanted: dict[str, str] = {}
    for path, column in dataset.roles():
        if column:
            wanted.setdefault(column, path)
    columns = column_types(dataset.source, logs, wanted, faults)
    columns = vector_columns(dataset.features, columns, logs, faults)
    events = [_open_events(dataset, log, columns, folder, faults) for log in dataset.source.events]
    opened = Opened(dataset, logs, columns, events)
    check_declared(dataset.source, opened.files, faults)
    check_columns(dataset, columns, faults)
    check_rules(dataset, columns, faults)
    check_past(dataset, columns, faults)
    check_feature_columns(dataset, {**columns, **past_columns(dataset, columns)}, faults)
    check_tasks(dataset.tasks, columns, faults)
    for split, values in dataset.split.values.items():
        check_values(f"split.{split}", columns.get(dataset.split.column or ""), values, faults)
    faults.raise_any()
    return opened


def _files(
    dataset: Dataset, source: Source, name: str, folder: Path, faults: Faults
) -> list[LogFile]:
    """Find the files of a log and read their columns."""
    if dataset.simulation is not None and not (folder / SUCCESS).exists():
        return [LogFile(str(folder / f"{name}.parquet"), "all", funnel.schemas()[name])]
    logs = open_logs(source, folder, faults)
    if source.same_columns:
        check_same_columns(source, logs, faults)
    return logs


def _open_events(
    dataset: Dataset, log: EventLog, columns: dict[str, Column], folder: Path, faults: Faults
) -> Events:
    """Open a log of events and note what does not suit the impressions.

    Times are looked at only where an attribution window needs them.
    """
    files = _files(dataset, log.source, log.name, folder, faults)
    path = f"source.{log.name}"
    wanted = {log.join: f"{path}.join"}
    timed = any(task.events and task.events.attribution_hours for task in dataset.tasks)
    if timed or dataset.histories:
        wanted[log.time] = f"{path}.time"
    for task in dataset.tasks:
        if task.events and task.events.log == log.name and task.events.value:
            wanted.setdefault(task.events.value, f"{task.path}.label.value")
    found = column_types(log.source, files, wanted, faults) if files else {}
    impression, event = columns.get(dataset.source.join or ""), found.get(log.join)
    if impression and event and (event.type, event.is_list) != (impression.type, False):
        got = f"{event.name!r}, {'a list of ' if event.is_list else ''}{event.type}"
        words = f"{impression.type}, as {impression.name!r} of the impressions"
        faults.note(f"{path}.join", wanted=words, got=got)
    for file in files if log.time in found else ():
        kind = file.schema[log.time]
        declared = log.source.types.get(log.time) == "datetime" and kind == pl.String
        if not declared and not isinstance(kind, (pl.Date, pl.Datetime)):
            words = "dates and times (source.types can declare datetime)"
            faults.note(f"{path}.time", wanted=words, got=f"{log.time!r} of type {kind}")
    return Events(log, files, found)
