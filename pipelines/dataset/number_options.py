"""What a dataset file can say of numeric and bucketised features, read value by value."""

import math
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from pipelines.dataset.checked import Entry, shown

Scaling = Literal["zscore", "minmax", "none"]
StandIn = Literal["zero", "mean", "median"]

MAX_BUCKETS = 1024
_CLIP = 8.0
_LARGEST = float(np.finfo(np.float32).max)


def numeric_options(entry: Entry) -> dict[str, Any]:
    """Return how a number is transformed and scaled, and what stands in where it is missing."""
    transform = _transform(entry)
    scaling = entry.text("scale", "zscore", choices=("zscore", "minmax", "none"))
    low, high = _domain(entry)
    least = -math.inf if transform == "identity" else 0.0
    if high is not None and high < least:
        wanted = f"numbers that have a {transform}, from 0 up"
        entry.faults.note(entry.at("domain"), wanted=wanted, got=f"at most {high:g}")
    low = low if low is None else max(low, least)
    return {
        "transform": transform,
        "scaling": scaling,
        "low": low,
        "high": high,
        "missing": _stand_in(entry, least if low is None else low, high),
        "clip": entry.number("clip", _LARGEST if scaling == "none" else _CLIP, above=0),
        "missing_flag": entry.flag("missing_flag", False),
    }


def bucketized_options(entry: Entry) -> dict[str, Any]:
    """Return edges, or how many buckets of equal weight to fit, and whether infinity has one."""
    num_buckets = None
    if entry.has("num_buckets"):
        num_buckets = entry.whole("num_buckets", least=2, most=MAX_BUCKETS)
        if entry.has("edges"):
            wanted = "either this or num_buckets"
            entry.faults.note(entry.at("edges"), wanted=wanted, got="both")
        entry.raw("edges", None)
    else:
        entry.raw("num_buckets", None)
    return {
        "edges": () if num_buckets is not None else _edges(entry),
        "num_buckets": num_buckets,
        "allow_inf": entry.flag("allow_inf", False),
    }


def _transform(entry: Entry) -> str:
    """Return the transform; `log1p: true` is short for that one."""
    short = entry.flag("log1p", False)
    if entry.has("transform") and entry.has("log1p"):
        wanted = "either this or log1p"
        entry.faults.note(entry.at("transform"), wanted=wanted, got="both")
    names = ("identity", "log1p", "sqrt")
    return entry.text("transform", "log1p" if short else "identity", choices=names)


def _domain(entry: Entry) -> tuple[float | None, float | None]:
    """Return the least and the greatest number that is not missing, None where there is no end.

    They are float32, as numbers in the data are: 0.1 lies within [0, 0.1].
    """
    value = entry.raw("domain", None)
    if value is None:
        return None, None
    pair = list(value) if isinstance(value, (list, tuple)) else []
    ends = [
        _single(end) if _is_number(end) else None for end in pair if end is None or _is_number(end)
    ]
    if len(pair) != 2 or len(ends) != 2 or (None not in ends and ends[0] >= ends[1]):  # type: ignore[operator]
        wanted = "[low, high], two numbers that rise; null for no end"
        entry.faults.note(entry.at("domain"), wanted=wanted, got=shown(value))
        return None, None
    return ends[0], ends[1]


def _stand_in(entry: Entry, low: float, high: float | None) -> StandIn | float:
    """Return what stands in for a missing number: a word, or a number of the domain."""
    value = entry.raw("missing", "zero")
    if value in ("zero", "mean", "median"):
        return value  # type: ignore[no-any-return]
    if not _is_number(value):
        words = ("zero", "mean", "median")
        wanted = "zero, mean, median or a number"
        entry.faults.note(entry.at("missing"), wanted=wanted, got=shown(value), choices=words)
        return "zero"
    value = _single(value)
    if not low <= value <= (math.inf if high is None else high):
        wanted = "a number that is not missing itself"
        entry.faults.note(entry.at("missing"), wanted=wanted, got=f"{value:g}, outside the domain")
    return value


def _single(value: float) -> float:
    return float(np.float32(value))


def _is_number(value: Any) -> bool:
    is_plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_plain and abs(value) <= _LARGEST


def _edges(entry: Entry) -> tuple[float, ...]:
    """Return bucket edges as float32 values, finite and strictly increasing."""
    if not entry.has("edges"):
        entry.raw("edges", wanted="a list of numbers (or num_buckets: how many to fit)")
        return ()
    given = entry.values("edges")
    numbers = [x for x in given if isinstance(x, (int, float)) and not isinstance(x, bool)]
    with np.errstate(over="ignore"):
        edges = tuple(float(np.float32(x)) for x in numbers)
    rising = all(a < b for a, b in pairwise(edges))
    if (given and len(numbers) < len(given)) or not np.isfinite(edges).all() or not rising:
        wanted = "finite numbers, each above the one before it (as float32)"
        entry.faults.note(entry.at("edges"), wanted=wanted, got=repr(list(given)))
    elif not edges:
        entry.faults.note(entry.at("edges"), wanted="at least one number", got="none")
    return edges
