"""Plain values of JSON as frozen dataclasses: every entry known, and none missing."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from recsys_moe.errors import SpecError
from recsys_moe.feature import KINDS, Feature

T = TypeVar("T")


def build(kind: type[T], entry: Mapping[str, Any], what: str) -> T:
    """Build a dataclass from its fields by name.

    Raises:
        SpecError: An entry is no field, or a field without a default has no entry.
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for key in entry.keys() - known.keys():
        raise SpecError(what, wanted="known entries", got=repr(key), choices=known)
    for key, field in known.items():
        if key not in entry and field.default is MISSING:
            raise SpecError(what, wanted=f"an entry {key!r}", got="none")
    return kind(**entry)


def build_feature(entry: Mapping[str, Any]) -> Feature:
    """Build a feature from its fields and the name of its `kind`.

    Raises:
        SpecError: There is no such kind, or its fields are others.
    """
    entry = dict(entry)
    kind = entry.pop("kind", None)
    if kind not in KINDS:
        raise SpecError("feature, kind", wanted=" or ".join(KINDS), got=repr(kind), choices=KINDS)
    for key in ("edges", "columns"):
        if key in entry:
            entry[key] = tuple(entry[key])
    return build(KINDS[kind], entry, f"feature {entry.get('name')!r}")
