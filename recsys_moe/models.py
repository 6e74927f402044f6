"""Builders: a feature spec and plain hyper-parameters become a model.

An architecture is a way to wire the same embedding module, experts, router and tower. A new one
is a builder here and a YAML under `conf/model/`. Which kind of expert and which router it uses are
choices of their own (`conf/experts/`, `conf/router/`).
"""

from collections.abc import Sequence

from torch import nn

from recsys_moe.assembly import Groups, Sizes, check
from recsys_moe.changes import UNCHANGED, Changes
from recsys_moe.expert_kinds import MakeBank, mlp
from recsys_moe.gate_kinds import MakeRouter, gate, gates
from recsys_moe.modules.mixtures import CGC, PLE, MMoE, SharedBottom
from recsys_moe.modules.multi_task import MultiTaskModel, SeparateModels
from recsys_moe.moe.router_softmax import SoftmaxRouter
from recsys_moe.pools import Pool
from recsys_moe.spec import FeatureSpec


def single_task(
    spec: FeatureSpec,
    *,
    embedding_dim: int,
    widths: Sequence[int],
    tower_widths: Sequence[int],
    dropout: float,
    embedding_dropout: float,
    experts: MakeBank = mlp,
) -> SeparateModels:
    """Build one network per task, embeddings included."""
    sizes = Sizes(
        embedding_dim=embedding_dim,
        widths=widths,
        tower_widths=tower_widths,
        dropout=dropout,
        embedding_dropout=embedding_dropout,
        experts=experts,
    )
    return SeparateModels(
        [
            sizes.assemble(spec, [task], SharedBottom(sizes.pool(1, sizes.width(spec)).bank, 1))
            for task in spec.task_names
        ]
    )


def shared_bottom(
    spec: FeatureSpec,
    *,
    embedding_dim: int,
    widths: Sequence[int],
    tower_widths: Sequence[int],
    dropout: float,
    embedding_dropout: float,
    experts: MakeBank = mlp,
) -> MultiTaskModel:
    """Build one trunk under all towers."""
    sizes = Sizes(
        embedding_dim=embedding_dim,
        widths=widths,
        tower_widths=tower_widths,
        dropout=dropout,
        embedding_dropout=embedding_dropout,
        experts=experts,
    )
    bank = sizes.pool(1, sizes.width(spec)).bank
    return sizes.assemble(spec, spec.task_names, SharedBottom(bank, len(spec.tasks)))


def mmoe(
    spec: FeatureSpec,
    *,
    embedding_dim: int,
    num_experts: int,
    widths: Sequence[int],
    tower_widths: Sequence[int],
    dropout: float,
    embedding_dropout: float,
    experts: MakeBank = mlp,
    router: MakeRouter = SoftmaxRouter,
    group_experts: Groups | None = None,
    frozen_experts: Sequence[str] = (),
    changes: Changes = UNCHANGED,
) -> MultiTaskModel:
    """Build one pool of experts and a gate per task."""
    check(num_experts=num_experts)
    sizes = Sizes(
        embedding_dim=embedding_dim,
        widths=widths,
        tower_widths=tower_widths,
        dropout=dropout,
        embedding_dropout=embedding_dropout,
        experts=experts,
    )
    extras, input_width = sizes.extras(spec, group_experts, frozen_experts)
    width = sizes.width(spec)
    found = sizes.pool(num_experts, width, extras=extras, input_width=input_width, changes=changes)
    each = gates(router, width, found.bank.num_experts, len(spec.tasks), changes=changes)
    mixture = MMoE(found.bank, each, spec.task_names, names=found.names)
    return sizes.assemble(
        spec, spec.task_names, mixture, changes=changes, reads_raw=bool(frozen_experts)
    )


def moe(
    spec: FeatureSpec,
    *,
    embedding_dim: int,
    num_experts: int,
    num_shared_experts: int,
    widths: Sequence[int],
    tower_widths: Sequence[int],
    dropout: float,
    embedding_dropout: float,
    experts: MakeBank = mlp,
    router: MakeRouter = SoftmaxRouter,
    group_experts: Groups | None = None,
    frozen_experts: Sequence[str] = (),
    changes: Changes = UNCHANGED,
) -> MultiTaskModel:
    """Build one mixture of experts under all towers, with experts that every row uses beside it."""
    check(num_experts=num_experts)
    sizes = Sizes(
        embedding_dim=embedding_dim,
        widths=widths,
        tower_widths=tower_widths,
        dropout=dropout,
        embedding_dropout=embedding_dropout,
        experts=experts,
    )
    extras, input_width = sizes.extras(spec, group_experts, frozen_experts)
    width = sizes.width(spec)
    found = sizes.pool(num_experts, width, extras=extras, input_width=input_width, changes=changes)
    shared = None
    if num_shared_experts:
        check(num_shared_experts=num_shared_experts)
        shared = sizes.pool(num_shared_experts, width).bank
    one = gates(router, width, found.bank.num_experts, 1, changes=changes)
    mixture = MMoE(found.bank, one, spec.task_names, names=found.names, shared=shared)
    return sizes.assemble(
        spec, spec.task_names, mixture, changes=changes, reads_raw=bool(frozen_experts)
    )


def ple(
    spec: FeatureSpec,
    *,
    embedding_dim: int,
    num_levels: int,
    num_task_experts: int,
    num_shared_experts: int,
    widths: Sequence[int],
    tower_widths: Sequence[int],
    dropout: float,
    embedding_dropout: float,
    experts: MakeBank = mlp,
    router: MakeRouter = SoftmaxRouter,
    group_experts: Groups | None = None,
    frozen_experts: Sequence[str] = (),
    changes: Changes = UNCHANGED,
) -> MultiTaskModel:
    """Build `num_levels` levels of shared and task experts; one level is CGC."""
    check(
        num_levels=num_levels,
        num_task_experts=num_task_experts,
        num_shared_experts=num_shared_experts,
    )
    sizes = Sizes(
        embedding_dim=embedding_dim,
        widths=widths,
        tower_widths=tower_widths,
        dropout=dropout,
        embedding_dropout=embedding_dropout,
        experts=experts,
    )
    extras, input_width = sizes.extras(spec, group_experts, frozen_experts)
    width = sizes.width(spec)
    levels, names = [], []
    late = [n for n, task in enumerate(spec.task_names) if task in changes.late_tasks]
    for level in range(num_levels):
        own = [sizes.pool(num_task_experts, width) for _ in spec.tasks]
        shared = sizes.pool(
            num_shared_experts, width, extras=extras, input_width=input_width, changes=changes
        )
        num_visible = num_task_experts + shared.bank.num_experts
        num_all = num_visible + (len(spec.tasks) - len(late) - 1) * num_task_experts
        levels.append(
            CGC(
                [each.bank for each in own],
                shared.bank,
                [gate(router, width, num_visible, changes=changes) for _ in spec.tasks],
                gate(router, width, num_all, changes=changes) if level < num_levels - 1 else None,
                late=late,
            )
        )
        names.append(_level_names(spec, own, shared))
        width, extras, input_width = widths[-1], [], widths[-1]
    mixture = PLE(levels, spec.task_names, width, names=names)
    return sizes.assemble(
        spec, spec.task_names, mixture, changes=changes, reads_raw=bool(frozen_experts)
    )


def num_parameters(model: nn.Module) -> int:
    """Count the numbers a model has learnt."""
    return sum(parameter.numel() for parameter in model.parameters())


def _level_names(spec: FeatureSpec, own: Sequence[Pool], shared: Pool) -> list[str]:
    pairs = zip(spec.task_names, own, strict=True)
    names = [f"{task}/{name}" for task, each in pairs for name in each.names]
    return [*names, *(f"shared/{name}" for name in shared.names)]
