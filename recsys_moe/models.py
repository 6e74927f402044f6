"""Builders: a feature spec and plain hyper-parameters become a model.

An architecture is a way to wire the same embedding module, expert bank, gate and tower. A new one
is a builder here and a YAML under `conf/model/`.
"""

from collections.abc import Sequence

from torch import nn

from recsys_moe.errors import RequestError
from recsys_moe.modules.embeddings import Embeddings
from recsys_moe.modules.experts import ExpertBank, Gate
from recsys_moe.modules.mixtures import CGC, PLE, MMoE, SharedBottom
from recsys_moe.modules.multi_task import MultiTaskModel, SeparateModels, Tower
from recsys_moe.spec import FeatureSpec


def single_task(
    spec: FeatureSpec,
    *,
    embedding_dim: int,
    widths: Sequence[int],
    tower_widths: Sequence[int],
    dropout: float,
    embedding_dropout: float,
) -> SeparateModels:
    """Build one network per task, embeddings included."""
    _check(embedding_dim=embedding_dim, widths=widths)
    return SeparateModels(
        [
            _assemble(
                spec,
                [task],
                SharedBottom(
                    ExpertBank(1, _width(spec, embedding_dim), widths, dropout=dropout), 1
                ),
                embedding_dim,
                tower_widths,
                dropout,
                embedding_dropout,
            )
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
) -> MultiTaskModel:
    """Build one trunk under all towers."""
    _check(embedding_dim=embedding_dim, widths=widths)
    bank = ExpertBank(1, _width(spec, embedding_dim), widths, dropout=dropout)
    mixture = SharedBottom(bank, len(spec.tasks))
    return _assemble(
        spec, spec.task_names, mixture, embedding_dim, tower_widths, dropout, embedding_dropout
    )


def mmoe(
    spec: FeatureSpec,
    *,
    embedding_dim: int,
    num_experts: int,
    widths: Sequence[int],
    tower_widths: Sequence[int],
    dropout: float,
    embedding_dropout: float,
) -> MultiTaskModel:
    """Build one bank of experts and a gate per task."""
    _check(embedding_dim=embedding_dim, num_experts=num_experts, widths=widths)
    width = _width(spec, embedding_dim)
    bank = ExpertBank(num_experts, width, widths, dropout=dropout)
    mixture = MMoE(bank, [Gate(width, num_experts) for _ in spec.tasks])
    return _assemble(
        spec, spec.task_names, mixture, embedding_dim, tower_widths, dropout, embedding_dropout
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
) -> MultiTaskModel:
    """Build `num_levels` levels of shared and task experts; one level is CGC."""
    _check(
        embedding_dim=embedding_dim,
        num_levels=num_levels,
        num_task_experts=num_task_experts,
        num_shared_experts=num_shared_experts,
        widths=widths,
    )
    num_tasks = len(spec.tasks)

    def bank(num_experts: int, input_width: int) -> ExpertBank:
        return ExpertBank(num_experts, input_width, widths, dropout=dropout)

    levels, width = [], _width(spec, embedding_dim)
    for level in range(num_levels):
        num_visible = num_task_experts + num_shared_experts
        num_all = num_tasks * num_task_experts + num_shared_experts
        levels.append(
            CGC(
                [bank(num_task_experts, width) for _ in spec.tasks],
                bank(num_shared_experts, width),
                [Gate(width, num_visible) for _ in spec.tasks],
                Gate(width, num_all) if level < num_levels - 1 else None,
            )
        )
        width = widths[-1]
    mixture = PLE(levels, num_tasks, width)
    return _assemble(
        spec, spec.task_names, mixture, embedding_dim, tower_widths, dropout, embedding_dropout
    )


def num_parameters(model: nn.Module) -> int:
    """Count the numbers a model has learnt."""
    return sum(parameter.numel() for parameter in model.parameters())


def _assemble(
    spec: FeatureSpec,
    tasks: Sequence[str],
    mixture: SharedBottom | MMoE | PLE,
    embedding_dim: int,
    tower_widths: Sequence[int],
    dropout: float,
    embedding_dropout: float,
) -> MultiTaskModel:
    for name, share in (("dropout", dropout), ("embedding_dropout", embedding_dropout)):
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise RequestError(f"model.{name}", wanted="a share from 0 to below 1", got=repr(share))
    towers = {task: Tower(mixture.output_width, tower_widths, dropout=dropout) for task in tasks}
    embeddings = Embeddings(spec, embedding_dim)
    return MultiTaskModel(embeddings, mixture, towers, embedding_dropout=embedding_dropout)


def _width(spec: FeatureSpec, embedding_dim: int) -> int:
    return embedding_dim * len(spec.code_features) + spec.num_numbers


def _check(**sizes: int | Sequence[int]) -> None:
    """Refuse sizes that are not positive whole numbers, by their names."""
    for name, size in sizes.items():
        values = [size] if isinstance(size, int) else size
        whole = isinstance(values, list | tuple) and all(isinstance(v, int) for v in values)
        if not whole or not values or min(values) < 1:
            raise RequestError(
                f"model.{name}", wanted="whole numbers of at least 1", got=repr(size)
            )
