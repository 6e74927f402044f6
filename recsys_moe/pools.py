"""Pools of experts: those of the configured kind, and beside them those of groups of features.

A pool is what one gate's shared experts are. Group experts read the columns of a few features
alone (a modality's, the user's, the item's), frozen experts read raw values; a pool with either is
a `HeteroBank`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recsys_moe.errors import RequestError
from recsys_moe.expert_kinds import MakeBank, flat
from recsys_moe.moe.banks import Bank
from recsys_moe.moe.banks_hetero import HeteroBank
from recsys_moe.spec import FeatureSpec

KINDS = {"MLPBank": "mlp", "SwiGLUBank": "swiglu", "LinearBank": "linear", "CrossBank": "cross"}


@dataclass(frozen=True, slots=True)
class Extra:
    """A bank beside the main one: its columns of the input, and its experts' names."""

    bank: Bank
    columns: Sequence[slice]
    names: Sequence[str]


@dataclass(slots=True)
class Pool:
    """A bank, and a name for each of its experts."""

    bank: Bank | HeteroBank
    names: list[str] = field(default_factory=list)


def pool(
    make: MakeBank,
    num_experts: int,
    width: int,
    *,
    widths: Sequence[int],
    dropout: float,
    extras: Sequence[Extra] = (),
    input_width: int | None = None,
    added: Sequence[int] = (),
    num_open: int | None = None,
) -> Pool:
    """Return the experts of the configured kind, then the extra ones, then those added later.

    Args:
        make: The kind.
        num_experts: How many of it.
        width: The width of what they read, the first columns of the input.
        widths: Of their layers.
        dropout: In them.
        extras: The banks beside them.
        input_width: The width of the input with its raw columns, `width` if there are none.
        added: How many of the configured kind came later, each time.
        num_open: How many of those times count; None for all.
    """
    main = make(num_experts, width, widths=widths, dropout=dropout)
    counts: dict[str, int] = {}
    names = _names(main, counts)
    if not extras and not added:
        return Pool(main, names)
    later = [flat(make(count, width, widths=widths, dropout=dropout)) for count in added]
    names += [name for extra in extras for name in extra.names]
    names += [name for banks in later for bank in banks for name in _names(bank, counts)]
    is_whole = (input_width or width) == width
    own: list[slice] | None = None if is_whole else [slice(0, width)]
    bank = HeteroBank(
        [
            *flat(main),
            *(extra.bank for extra in extras),
            *(bank for each in later for bank in each),
        ],
        input_width=input_width or width,
        output_width=widths[-1],
        features=[
            *[own] * len(flat(main)),
            *(list(extra.columns) for extra in extras),
            *[own] * sum(map(len, later)),
        ],
        num_shut=0 if num_open is None else sum(map(len, later[num_open:])),
    )
    return Pool(bank, names[: bank.num_experts])


def group_extras(
    groups: Mapping[str, Mapping[str, Any]],
    make: MakeBank,
    spec: FeatureSpec,
    embedding_dim: int,
    *,
    widths: Sequence[int],
    dropout: float,
) -> list[Extra]:
    """Return a bank for each group of features.

    Args:
        groups: By name, `features`, a list of features' names, and `num_experts` (1 if not given).
        make: The kind of experts.
        spec: The features.
        embedding_dim: The width of each code feature in the input.
        widths: Of the experts' layers.
        dropout: In them.

    Raises:
        RequestError: A group that names no feature, an unknown one, or anything else.
    """
    places = feature_columns(spec, embedding_dim)
    found = []
    for name, group in groups.items():
        what = f"model.group_experts.{name}"
        if not isinstance(group, Mapping) or not isinstance(group.get("features", []), list):
            raise RequestError(what, wanted="features, a list, and num_experts", got=repr(group))
        if unknown := group.keys() - {"features", "num_experts"}:
            raise RequestError(what, wanted="features and num_experts", got=", ".join(unknown))
        features, count = group.get("features", []), group.get("num_experts", 1)
        for feature in features:
            if feature not in places:
                raise RequestError(
                    f"{what}.features",
                    wanted="names of features",
                    got=repr(feature),
                    choices=places,
                )
        if len(set(features)) < len(features):
            raise RequestError(f"{what}.features", wanted="each once", got=f"{features}")
        if not features or isinstance(count, bool) or not isinstance(count, int) or count < 1:
            wanted = "at least one feature and one expert"
            raise RequestError(what, wanted=wanted, got=f"{features} and {count!r}")
        columns = [places[feature] for feature in features]
        width = sum(part.stop - part.start for part in columns)
        counts: dict[str, int] = {}
        for bank in flat(make(count, width, widths=widths, dropout=dropout)):
            names = [f"{name}/{each}" for each in _names(bank, counts)]
            found.append(Extra(bank, columns, names))
    return found


def feature_columns(spec: FeatureSpec, embedding_dim: int) -> dict[str, slice]:
    """Return where each feature lies in what a mixture reads: its embedding, or its numbers."""
    found, first = {}, 0
    for feature in spec.code_features:
        found[feature.name] = slice(first, first + embedding_dim)
        first += embedding_dim
    for numeric in spec.numeric_features:
        found[numeric.name] = slice(first, first + numeric.num_numbers)
        first += numeric.num_numbers
    return found


def _names(bank: Bank | HeteroBank, counts: dict[str, int]) -> list[str]:
    """Return a kind and a number for each expert, counting on from `counts`."""
    names = []
    for part in flat(bank):
        kind = KINDS.get(type(part).__name__, "expert")
        for _ in range(part.num_experts):
            counts[kind] = counts.get(kind, -1) + 1
            names.append(f"{kind} {counts[kind]}")
    return names
