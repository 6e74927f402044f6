"""Which columns of the training tensors a feature is, and what they mean.

A feature's columns are its code as a number, or its numbers and, last, its missing flag if it has
one. Features that are lists of codes have no place here: their codes are no numbers to compare.

Shapes: N rows, S code slots, K number columns, M columns that an expert reads.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys_moe.errors import RequestError
from recsys_moe.files import digest
from recsys_moe.frozen.expert_file import ExpertFile
from recsys_moe.spec import FeatureSpec, NumberFeature

_EXACT = 2**24
"""A float32 holds every whole number up to here."""


def raw_columns(spec: FeatureSpec) -> dict[str, slice]:
    """Return where each feature lies in [codes | numbers], S + K columns, lists of codes left out.

    >>> from recsys_moe.spec import Categorical, Column, Table, Task
    >>> spec = FeatureSpec(
    ...     dataset="toy",
    ...     columns=(Column(name="city", type="string"),),
    ...     tables=(Table(name="city", num_codes=9, num_oov=1),),
    ...     features=(Categorical(name="city", column="city", table="city"),),
    ...     tasks=(Task(name="click", label="click"),),
    ...     train_rows=1,
    ... )
    >>> raw_columns(spec)
    {'city': slice(0, 1, None)}
    """
    found, first = {}, 0
    for feature in spec.code_features:
        if feature.num_slots == 1 and spec.table(feature.table).num_codes <= _EXACT:
            found[feature.name] = slice(first, first + 1)
        first += feature.num_slots
    for numeric in spec.numeric_features:
        found[numeric.name] = slice(first, first + numeric.num_numbers)
        first += numeric.num_numbers
    return found


def slices_of(spec: FeatureSpec, expert: ExpertFile, *, after: int = 0) -> list[slice]:
    """Return the columns that an expert reads of [x | codes | numbers], x being `after` wide.

    Raises:
        RequestError: The spec lacks a feature that the expert reads, or means something else by it.
    """
    places = chosen(spec, expert.features, f"expert {expert.name!r}")
    if meaning_of(spec, expert.features) != expert.meaning:
        wanted = "features that mean what they meant when it was fitted"
        got = "other vocabularies, edges or scales; freeze it again with these features"
        raise RequestError(f"expert {expert.name!r}", wanted=wanted, got=got)
    return [slice(after + place.start, after + place.stop) for place in places]


def chosen(spec: FeatureSpec, features: Sequence[str], what: str) -> list[slice]:
    """Return the columns of some features, in their order.

    Raises:
        RequestError: No feature, or one that has no columns here.
    """
    places = raw_columns(spec)
    if not features:
        raise RequestError(f"{what}, features", wanted="at least one", got="none")
    for name in features:
        if name not in places:
            known = name in (feature.name for feature in spec.features)
            got = f"{name!r}, a list or a table of more than 2^24 codes" if known else repr(name)
            wanted = "features that are numbers, or one code each"
            raise RequestError(f"{what}, features", wanted=wanted, got=got, choices=places)
    return [places[name] for name in features]


def meaning_of(spec: FeatureSpec, features: Sequence[str]) -> str:
    """Return a digest of what the columns of some features mean; tasks have no part in it."""
    by_name = {feature.name: feature for feature in spec.features}
    found = []
    for name in features:
        feature = by_name[name]
        table = None if isinstance(feature, NumberFeature) else asdict(spec.table(feature.table))
        found.append([type(feature).__name__, asdict(feature), table])
    return digest(found)


def rows_of(
    spec: FeatureSpec,
    features: Sequence[str],
    codes_NS: NDArray[np.int32],
    numbers_NK: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return what an expert of these features reads, float32 (N, M)."""
    raw_NR = np.concatenate([codes_NS.astype(np.float32), numbers_NK], axis=1)
    parts = [raw_NR[:, place] for place in chosen(spec, features, "rows")]
    return np.concatenate(parts, axis=1)


def read_rows(
    folder: Path, split: str, features: Sequence[str], task: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the rows of a features folder whose label of a task is known: (N, M), and labels (N,).

    Raises:
        RequestError: An unknown task, or features without columns here.
    """
    spec = FeatureSpec.load(folder / "feature_spec.json")
    if task not in spec.task_names:
        wanted = f"one of {', '.join(spec.task_names)}"
        raise RequestError("task", wanted=wanted, got=repr(task), choices=spec.task_names)
    tensors, number = folder / "tensors" / split, spec.task_names.index(task)
    codes_NS, numbers_NK, labels_NT, known_NT = (
        np.load(tensors / f"{name}.npy", allow_pickle=False)
        for name in ("codes", "numbers", "labels", "known")
    )
    known_N = known_NT[:, number].astype(bool)
    rows_NM = rows_of(spec, features, codes_NS[known_N], numbers_NK[known_N])
    return rows_NM, labels_NT[known_N, number].astype(np.float32)
