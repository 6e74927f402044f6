"""What every builder does: the pool that tasks share, the towers, and sizes that make sense."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from recsys_moe.changes import UNCHANGED, Changes
from recsys_moe.errors import RequestError
from recsys_moe.expert_kinds import MakeBank
from recsys_moe.frozen.extras import frozen_extras
from recsys_moe.modules.domains import DomainExpert
from recsys_moe.modules.embeddings import Embeddings
from recsys_moe.modules.mixtures import Mixture
from recsys_moe.modules.multi_task import MultiTaskModel, Tower
from recsys_moe.modules.removed import remove_experts
from recsys_moe.pools import Extra, Pool, group_extras, pool
from recsys_moe.spec import FeatureSpec

Groups = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What all networks of a model have in common.

    Attributes:
        embedding_dim: The width of an embedding.
        widths: An expert's layers.
        tower_widths: A tower's hidden layers.
        dropout: In experts and towers.
        embedding_dropout: On embeddings.
        experts: The kind of experts.
    """

    embedding_dim: int
    widths: Sequence[int]
    tower_widths: Sequence[int]
    dropout: float
    embedding_dropout: float
    experts: MakeBank

    def __post_init__(self) -> None:
        check(embedding_dim=self.embedding_dim, widths=self.widths)
        for name in ("dropout", "embedding_dropout"):
            share = getattr(self, name)
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
                wanted = "a share from 0 to below 1"
                raise RequestError(f"model.{name}", wanted=wanted, got=repr(share))

    def width(self, spec: FeatureSpec) -> int:
        """Return the width of the embeddings and numbers side by side."""
        return self.embedding_dim * len(spec.code_features) + spec.num_numbers

    def pool(
        self,
        num_experts: int,
        width: int,
        *,
        extras: Sequence[Extra] = (),
        input_width: int | None = None,
        changes: Changes = UNCHANGED,
    ) -> Pool:
        """Return a pool of experts of the configured kind, with what was added to it."""
        return pool(
            self.experts,
            num_experts,
            width,
            widths=self.widths,
            dropout=self.dropout,
            extras=extras,
            input_width=input_width,
            added=changes.added_experts,
            num_open=changes.num_open,
        )

    def extras(
        self, spec: FeatureSpec, groups: Groups | None, frozen: Sequence[str]
    ) -> tuple[list[Extra], int]:
        """Return the banks of groups of features and of frozen experts, and the width of the input.

        Frozen experts read the codes and the numbers once more, as they come, after the others.
        """
        widths, dropout, dim = self.widths, self.dropout, self.embedding_dim
        found = group_extras(groups or {}, self.experts, spec, dim, widths=widths, dropout=dropout)
        width = self.width(spec)
        found += frozen_extras(frozen, spec, width, dropout=dropout)
        return found, width + (spec.num_slots + spec.num_numbers if frozen else 0)

    def assemble(
        self,
        spec: FeatureSpec,
        tasks: Sequence[str],
        mixture: Mixture,
        *,
        changes: Changes = UNCHANGED,
        reads_raw: bool = False,
    ) -> MultiTaskModel:
        """Put embeddings below a mixture and a tower for each task above it."""
        towers = {
            task: Tower(mixture.output_width, self.tower_widths, dropout=self.dropout)
            for task in tasks
        }
        embeddings = Embeddings(spec, self.embedding_dim)
        remove_experts(mixture, changes.removed_experts)
        expert = partial(
            self.experts, 1, self.width(spec), widths=self.widths, dropout=self.dropout
        )
        return MultiTaskModel(
            embeddings,
            mixture,
            towers,
            embedding_dropout=self.embedding_dropout,
            reads_raw=reads_raw,
            domains=[
                DomainExpert(expert(), len(tasks), _slots(spec, domain.feature), domain.code)
                for domain in changes.domains
            ],
        )


def check(**sizes: int | Sequence[int]) -> None:
    """Refuse sizes that are not positive whole numbers, by their names."""
    for name, size in sizes.items():
        values = [size] if isinstance(size, int) else size
        whole = isinstance(values, list | tuple) and all(isinstance(v, int) for v in values)
        if not whole or not values or min(values) < 1:
            raise RequestError(
                f"model.{name}", wanted="whole numbers of at least 1", got=repr(size)
            )


def _slots(spec: FeatureSpec, name: str) -> tuple[int, int]:
    """Return where a feature's code slots begin, and where they end."""
    first = 0
    for feature in spec.code_features:
        if feature.name == name:
            return first, first + feature.num_slots
        first += feature.num_slots
    names = [feature.name for feature in spec.code_features]
    raise RequestError("domain", wanted="a feature with codes", got=repr(name), choices=names)
