"""Columns of a log's files held against what is asked of them, and against each other."""

import polars as pl

from pipelines.dataset.checked import Faults
from pipelines.dataset.roles import Source
from pipelines.logs.logs import LogFile
from pipelines.logs.values import family, type_of
from recsys_moe.spec import Column

_LISTED = 12


def column_types(
    source: Source, logs: list[LogFile], wanted: dict[str, str], faults: Faults
) -> dict[str, Column]:
    """Return the type of each wanted column, noting what is missing or differs between files.

    Args:
        source: The source, with the types it declares.
        logs: The files and their columns.
        wanted: Column names, each with the path under which the dataset file names it.
        faults: Where to note what is wrong.
    """
    columns: dict[str, Column] = {}
    families: dict[str, str] = {}
    listed: set[str] = set()
    for name, path in wanted.items():
        for log in logs:
            if name not in log.schema:
                wanted_words = f"a column of {log.name}"
                if log.location not in listed:
                    wanted_words += f" ({_listing(log, source)})"
                    listed.add(log.location)
                faults.note(path, wanted=wanted_words, got=repr(name), choices=list(log.schema))
                break
            found = type_of(name, log.schema[name], source.types.get(name))
            if found is None:
                got = f"{name!r} of type {log.schema[name]} in {log.name}"
                faults.note(path, wanted="numbers, strings, dates or lists of these", got=got)
                break
            if log.schema[name] == pl.Null and name not in source.types:
                continue
            first = families.setdefault(name, family(log.schema[name]))
            if columns.setdefault(name, found) == found and family(log.schema[name]) != first:
                got = f"{family(log.schema[name])} in {log.name}"
                faults.note(path, wanted=f"{name!r} as {first}", got=got)
                break
            if columns[name] != found:
                got = f"{_words(found)} in {log.name}"
                faults.note(path, wanted=f"{name!r} as {_words(columns[name])}", got=got)
                break
        else:
            columns.setdefault(name, Column(name=name, type="string"))
    return columns


def _listing(log: LogFile, source: Source) -> str:
    """Say which columns a file has, the first of many, or that its separator seems another."""
    names = list(log.schema)
    if source.format == "csv" and len(names) == 1 and any(sign in names[0] for sign in ";\t|,"):
        return f"it has only {names[0]!r}: is its separator {source.separator!r}?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"it has {', '.join(names[:_LISTED]) or 'none'}{more}"


def check_declared(source: Source, logs: list[LogFile], faults: Faults) -> None:
    """Note declared types of columns that no file has."""
    choices = list(dict.fromkeys(name for log in logs for name in log.schema))
    for name in source.types:
        if name not in choices:
            faults.note(f"source.types.{name}", wanted="a column", got=repr(name), choices=choices)


def _words(column: Column) -> str:
    return f"a list of {column.type}" if column.is_list else column.type


def check_same_columns(source: Source, logs: list[LogFile], faults: Faults) -> None:
    """Note how files differ from the first: columns missing, added or of another type."""
    for log in logs[1:]:
        first = logs[0]
        for name in dict.fromkeys((*first.schema, *log.schema)):
            kinds = first.schema.get(name), log.schema.get(name)
            if kinds[0] != kinds[1]:
                wanted = f"the columns of {first.name} in every file (source.same_columns)"
                got = f"{name!r} of type {kinds[1]} in {log.name} and {kinds[0]} there"
                if kinds[1] is None:
                    got = f"no {name!r} in {log.name}"
                elif kinds[0] is None:
                    got = f"{name!r} in {log.name}, which is not there"
                faults.note(source.path, wanted=wanted, got=got)
