"""The kinds of surgery, each a function from what there is to a plan.

Their arguments are those of the YAML files in `conf/surgery/`.
"""

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from recsys_moe.changes import Domain
from recsys_moe.errors import RequestError
from recsys_moe.feature import Categorical
from recsys_moe.files import sha256_file
from recsys_moe.surgery.plan import Before, Plan, check_train


def add_experts(before: Before, *, count: int, open: bool, share: float, train: str) -> Plan:
    """Add experts to the pool that tasks share, in PLE to that of every level.

    Args:
        before: The run and the features.
        count: How many.
        open: Whether they count from now on.
        share: How much they have at the start (`opening.open_gently`).
        train: `new`, `all` or `none`.
    """
    before.check_gates("add_experts")
    _check_share(share)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        wanted = "a whole number of at least 1"
        raise RequestError("surgery.count", wanted=wanted, got=repr(count))
    check_train(train, ("new", "all", "none"))
    if open is not True and train != "none":
        wanted = "none for experts that are not open, as they learn nothing"
        raise RequestError("surgery.train", wanted=wanted, got=repr(train))
    old = before.changes
    if open and old.opened < len(old.added_experts):
        wanted = "surgery=open_experts first"
        raise RequestError("surgery=add_experts", wanted=wanted, got="experts not open yet")
    changes = replace(
        old,
        added_experts=(*old.added_experts, count),
        num_open=None if open else old.opened,
    )
    return Plan(kind="add_experts", changes=changes, train=train, share=share if open else None)


def open_experts(before: Before, *, share: float, train: str) -> Plan:
    """Let experts count that were added and not opened."""
    before.check_gates("open_experts")
    _check_share(share)
    if before.changes.opened == len(before.changes.added_experts):
        wanted = "a run with experts that are not open"
        raise RequestError("surgery=open_experts", wanted=wanted, got="one without")
    return Plan(
        kind="open_experts",
        changes=replace(before.changes, num_open=None),
        train=check_train(train, ("new", "all", "none")),
        share=share,
    )


def add_task(before: Before, *, from_task: str | None, train: str) -> Plan:
    """Add the tasks that the features have and the run has not: tower, gate and own experts."""
    check_train(train, ("new", "all", "none"))
    old, names = before.spec.task_names, before.new_spec.task_names
    new = [name for name in names if name not in old]
    if gone := [name for name in old if name not in names]:
        wanted = f"features with the run's tasks ({', '.join(old)})"
        raise RequestError("surgery=add_task", wanted=wanted, got=f"some without {gone[0]!r}")
    if not new:
        wanted = "features with a task more than the run's"
        raise RequestError("surgery=add_task", wanted=wanted, got=", ".join(names))
    if from_task is not None and from_task not in old:
        wanted = "a task of the run"
        raise RequestError("surgery.from_task", wanted=wanted, got=repr(from_task), choices=old)
    late = [name for name in names if name in new or name in before.changes.late_tasks]
    changes = replace(before.changes, late_tasks=late)
    return Plan(kind="add_task", changes=changes, train=train, from_task=from_task)


def add_domain(before: Before, *, feature: str, value: str | int, train: str) -> Plan:
    """Give the rows in which a code feature has a value an expert of their own."""
    before.check_gates("add_domain")
    check_train(train, ("new", "all", "none"))
    known = [(domain.feature, domain.value) for domain in before.changes.domains]
    if (feature, value) in known:
        wanted = "a value without an expert of its own"
        raise RequestError("surgery.value", wanted=wanted, got=repr(value))
    domain = Domain(feature=feature, value=value, code=_code(before, feature, value))
    changes = replace(before.changes, domains=(*before.changes.domains, domain))
    return Plan(kind="add_domain", changes=changes, train=train)


def remove_experts(
    before: Before, *, experts: Sequence[str | int], layer: str | None, train: str
) -> Plan:
    """Take experts out; the others are copied."""
    before.check_gates("remove_experts")
    check_train(train, ("gates", "all", "none"))
    where, gone = before.experts(layer, experts)
    names = [where.experts[number] for number in gone]
    removed = {name: list(each) for name, each in before.changes.removed_experts.items()}
    removed[where.name] = [*removed.get(where.name, []), *names]
    return Plan(
        kind="remove_experts",
        changes=replace(before.changes, removed_experts=removed),
        train=train,
        removed={where.name: names},
    )


def freeze_experts(
    before: Before, *, experts: Sequence[str | int], layer: str | None, train: str
) -> Plan:
    """Train everything but some experts."""
    before.check_gates("freeze_experts")
    where, found = before.experts(layer, experts)
    return Plan(
        kind="freeze_experts",
        changes=before.changes,
        train=check_train(train, ("all", "gates")),
        frozen={where.name: found},
    )


def resolved(before: Before, plan: Plan) -> Plan:
    """Return a plan whose domains have the codes of the features to go on with."""
    domains = [
        replace(domain, code=_code(before, domain.feature, domain.value))
        for domain in plan.changes.domains
    ]
    return replace(plan, changes=replace(plan.changes, domains=domains))


def _code(before: Before, name: str, value: str | int) -> int:
    """Return the code of a value in the vocabulary of a feature."""
    spec = before.new_spec
    listed = {
        feature.name: spec.table(feature.table)
        for feature in spec.code_features
        if isinstance(feature, Categorical) and spec.table(feature.table).vocabulary
    }
    if name not in listed:
        wanted = "a feature with a vocabulary"
        raise RequestError("surgery.feature", wanted=wanted, got=repr(name), choices=listed)
    path = before.features / str(listed[name].vocabulary)
    if not path.is_file() or sha256_file(path) != listed[name].sha256:
        wanted = "the vocabulary as it was fitted"
        raise RequestError(str(path), wanted=wanted, got="another content or none")
    vocabulary = pl.read_parquet(path, columns=["value", "code"])
    rows = vocabulary.filter(pl.col("value").cast(pl.String) == str(value))
    if rows.is_empty():
        most = vocabulary["value"].head(1000).cast(pl.String).to_list()
        wanted = f"a value of {name!r} in its vocabulary"
        raise RequestError("surgery.value", wanted=wanted, got=repr(value), choices=most)
    return int(rows["code"][0])


def _check_share(share: object) -> None:
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        wanted = "a share above 0 and below 1"
        raise RequestError("surgery.share", wanted=wanted, got=repr(share))


def none(before: Before | None) -> None:
    """Do nothing: a training without surgery."""
