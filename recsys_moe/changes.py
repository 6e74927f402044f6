"""What a model has become since it was first built: the part of its configuration surgery writes.

A builder (`recsys_moe.models`) is given it beside the sizes that the model began with, and names
every tensor that was there before as it was named before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """The rows in which a code feature has one value.

    Attributes:
        feature: The feature's name; a list is in the domain if one of its elements is the value.
        value: The value, for people.
        code: Its code in the vocabulary.
    """

    feature: str
    value: str | int
    code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """All changes so far.

    Attributes:
        added_experts: How many experts were added to the pool that tasks share, each time; in PLE
            to that of every level.
        num_open: How many of those times count; the experts of the others are kept, neither
            computed nor seen by a gate. None for all.
        removed_experts: By layer the names of the experts that are gone.
        late_tasks: Tasks that came later: nothing that other tasks use depends on what is theirs.
        domains: Domains with an expert of their own.
    """

    added_experts: Sequence[int] = ()
    num_open: int | None = None
    removed_experts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    late_tasks: Sequence[str] = ()
    domains: Sequence[Domain] = ()

    @property
    def opened(self) -> int:
        """How many times experts were added that count."""
        return len(self.added_experts) if self.num_open is None else self.num_open


UNCHANGED = Changes()
