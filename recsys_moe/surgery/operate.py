"""A surgery: the run's weights go into the changed model, and all but what is new stays.

A run that is killed and started again does all of this again, with the same result: what depends
on the weights is computed from the run that the surgery began with.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from recsys_moe.checkpoint import load_model
from recsys_moe.datamodule import Split
from recsys_moe.errors import RecsysMoeError, RequestError
from recsys_moe.meanings import BuildModel, by_meaning, meanings
from recsys_moe.modules.multi_task import MultiTaskModel
from recsys_moe.modules.removed import remove_experts
from recsys_moe.moe.router_base import LinearRouter
from recsys_moe.surgery.compare import Rows, compare, sample
from recsys_moe.surgery.held import all_but, expert_rows, gate_names, hold, opened_names
from recsys_moe.surgery.opening import inputs_of_routers, open_gently
from recsys_moe.surgery.plan import Before, Plan
from recsys_moe.warm_start import NEW, NONE, WarmStart, warm_start

LARGEST_GAP = 1e-5
"""Of a logit that a surgery does not change: one that is computed in another order can move."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a surgery did.

    Attributes:
        known: What was taken from the run, and what is new.
        checks: What was compared, in words, with the largest difference of a logit by task.
        parameters: How many are there, new, and trained.
        held: The tensors that training leaves alone, in part or whole.
    """

    plan: Plan
    known: WarmStart
    checks: dict[str, dict[str, float]]
    parameters: dict[str, int]
    held: dict[str, Any]

    def lines(self) -> list[str]:
        """Return it in a few lines."""
        counts = self.parameters
        lines = [f"{self.plan.kind}: {self.known.lines()[0]}"]
        lines += [
            f"{what}: " + ", ".join(f"{task} {_gap(gap)}" for task, gap in gaps.items())
            for what, gaps in self.checks.items()
        ]
        return [
            *lines,
            f"{counts['all']:,} parameters, {counts['new']:,} of them new, "
            f"{counts['trained']:,} trained",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            **self.known.to_dict(),
            "surgery": self.plan.kind,
            "train": self.plan.train,
            "checks": self.checks,
            "parameters": self.parameters,
            "held": self.held,
        }


def operate(
    model: nn.Module, build_model: BuildModel, before: Before, plan: Plan, valid: Split
) -> Done:
    """Put a run's weights into a changed model, check it against the run, and hold what stays.

    Args:
        model: The changed model, freshly initialised.
        build_model: Its builder.
        before: The run and the features.
        plan: What to do.
        valid: Validation rows of the features.

    Raises:
        RequestError: The features mean something else than the run's, or a router cannot change.
        RecsysMoeError: The changed model does not compute what the run's did.
    """

    def trim(old: nn.Module) -> None:
        assert isinstance(old, MultiTaskModel)
        remove_experts(old.mixture, plan.removed)

    known = warm_start(
        model,
        build_model,
        before.new_spec,
        before.features,
        before.run,
        trim=trim if plan.removed else None,
    )
    for name, why in known.fresh.items():
        if why != NONE and not why.endswith(NEW):
            wanted = "features that mean what the run's did"
            raise RequestError(f"surgery={plan.kind}", wanted=wanted, got=f"{name} fresh: {why}")
    if plan.from_task is not None:
        _copy_task(model, build_model, before, plan.from_task)
    closed = _closed(model, before, plan)
    new = {*known.fresh, *opened_names(closed, model)}
    training = model.training
    checks = _checks(model, closed, before, plan, valid)
    model.train(training)
    held = _held(model, plan, known, new)
    if plan.train != "none":
        hold(model, held)
    return Done(plan, known, checks, _counts(model, known, new, held), _listed(held))


def _closed(model: nn.Module, before: Before, plan: Plan) -> nn.Module:
    """Return the model with the experts closed that were not open before, if there are any."""
    if plan.kind not in ("add_experts", "open_experts"):
        return model
    shut = replace(plan.changes, num_open=before.changes.opened)
    with torch.random.fork_rng(devices=[]):
        build = instantiate(plan.model(before, changes=shut), _convert_="all")
        closed: nn.Module = build(before.new_spec)
    closed.load_state_dict(model.state_dict())
    return closed


def _copy_task(model: nn.Module, build_model: BuildModel, before: Before, from_task: str) -> None:
    """Start the new tasks' own tensors as another task's."""
    found = by_meaning(meanings(build_model, before.new_spec))
    tensors = model.state_dict()
    new = set(before.new_spec.task_names) - set(before.spec.task_names)
    for (meaning, task), name in found.items():
        if task in new and (meaning, from_task) in found:
            tensors[name].copy_(tensors[found[meaning, from_task]])


def _checks(
    model: nn.Module, closed: nn.Module, before: Before, plan: Plan, valid: Split
) -> dict[str, dict[str, float]]:
    """Compare with the run's model; open added experts once they are known to do no harm."""
    with torch.random.fork_rng(devices=[]):
        old, _ = load_model(before.run)
        rows = sample(before.spec, before.run, valid, before.features)
        size = f"on {len(rows):,} validation rows"
        if plan.kind in ("add_experts", "open_experts"):
            return _opened(old, closed, model, before, plan, rows)
        if plan.kind == "remove_experts":
            return {f"logits moved by at most, {size}": compare(old, model, rows)}
        where = ""
        if plan.kind == "add_domain":
            assert isinstance(model, MultiTaskModel)
            mask_B: Tensor = model.domains[-1].contains(rows.new_codes)  # type: ignore[operator]
            rows, where = rows.where(~mask_B), f", {int(mask_B.sum()):,} more are in the domain"
        gaps = compare(old, model, rows)
    _refuse_gap(plan, gaps)
    return {f"as before on {len(rows):,} validation rows{where}": gaps}


def _opened(
    old: nn.Module,
    closed: nn.Module,
    model: nn.Module,
    before: Before,
    plan: Plan,
    rows: Rows,
) -> dict[str, dict[str, float]]:
    gaps = compare(old, closed, rows)
    _refuse_gap(plan, gaps)
    checks = {f"as before on {len(rows):,} validation rows, new experts closed": gaps}
    if plan.share is not None:
        inputs = inputs_of_routers(closed, rows.new_codes, rows.numbers)
        for name, module in model.named_modules():
            if isinstance(module, LinearRouter) and name in inputs:
                open_gently(module, inputs[name], before.changes.opened, plan.share)
        checks["logits moved by at most, new experts open"] = compare(old, model, rows)
    return checks


def _refuse_gap(plan: Plan, gaps: dict[str, float]) -> None:
    for task, gap in gaps.items():
        if not gap <= LARGEST_GAP:
            raise RecsysMoeError(
                f"surgery={plan.kind}: wanted logits of {task!r} as they were, got some that "
                f"differ by {gap:.3g}"
            )


def _held(
    model: nn.Module, plan: Plan, known: WarmStart, new: set[str]
) -> dict[str, Tensor | None]:
    held: dict[str, Tensor | None] = {}
    if plan.train == "new":
        held = all_but(model, new)
        held |= {name: known.rows[name] for name in known.moved}
    elif plan.train == "gates":
        held = all_but(model, gate_names(model))
    elif plan.train == "none":
        held = all_but(model, ())
    for layer, experts in plan.frozen.items():
        held = expert_rows(model, layer, experts) | held
    return held


def _counts(
    model: nn.Module, known: WarmStart, new: set[str], held: dict[str, Tensor | None]
) -> dict[str, int]:
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    row = {name: p.numel() // max(len(p), 1) for name, p in model.named_parameters()}
    fresh = sum(size for name, size in sizes.items() if name in new)
    fresh += sum(sizes[name] - len(known.rows[name]) * row[name] for name in known.moved)
    stays = sum(
        sizes[name] if rows is None else len(rows) * row[name] for name, rows in held.items()
    )
    return {"all": sum(sizes.values()), "new": fresh, "trained": sum(sizes.values()) - stays}


def _listed(held: dict[str, Tensor | None]) -> dict[str, Any]:
    """Return the names, each with `all` or the number of rows that stay."""
    return {name: "all" if rows is None else len(rows) for name, rows in held.items()}


def _gap(gap: float) -> str:
    return "bit for bit" if gap == 0 else f"{gap:.2g}"
