r"""What a Monitor reads off a bank of experts: plain numbers, and the quantities made of them.

Shapes: T tasks (gates), E experts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import add


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    r"""How the experts of one bank were used over an interval, and how they answered.

    Attributes:
        name: The bank's name, for messages.
        tasks: The gates, T.
        owners: For each expert the task whose own it is, None for a shared one.
        visible: (T, E), which experts a gate may use.
        rows: (T,), the rows that each gate routed.
        counts: (T, E), the slots given to each expert; of a dense gate, its weights' sum.
        mass: (T, E), the sum of gate weights.
        probs: (T, E), the sum of gate probabilities before any selection.
        zero_share: (E,), the share of an expert's outputs that are exactly 0, None if not observed.
        scale: (E,), the root mean square of its outputs.
        similarity: (E, E), the cosine between two experts' outputs, each less its mean over rows.
    """

    name: str
    tasks: tuple[str, ...]
    owners: tuple[str | None, ...]
    visible: tuple[tuple[bool, ...], ...]
    rows: tuple[float, ...]
    counts: tuple[tuple[float, ...], ...]
    mass: tuple[tuple[float, ...], ...]
    probs: tuple[tuple[float, ...], ...]
    zero_share: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    similarity: tuple[tuple[float, ...], ...] | None = None

    @property
    def num_experts(self) -> int:
        """The number of experts, E."""
        return len(self.owners)

    @property
    def load(self) -> tuple[float, ...]:
        """The slots each expert got from all gates, c (E,)."""
        return tuple(map(sum, zip(*self.counts, strict=True)))

    @property
    def fair_load(self) -> tuple[float, ...]:
        r"""What each would have got in balance, (E,): N k / E where every gate sees all experts.

        .. math:: \sum_t \frac{c_t \, v_{te}}{\sum_e v_{te}}

        with :math:`c_t` the slots that gate t gave and :math:`v_{te}` whether it sees the expert.
        """
        per_gate = [
            [sum(counts) * seen / max(sum(visible), 1) for seen in visible]
            for counts, visible in zip(self.counts, self.visible, strict=True)
        ]
        return tuple(map(sum, zip(*per_gate, strict=True)))

    @property
    def gate_entropy(self) -> float:
        r"""Mean over gates of :math:`H(P_t) / \ln E_t`, with :math:`P_t` a gate's mean probability.

        1 where it spreads evenly over the E_t experts that it sees, 0 where it always takes one.
        """
        values = []
        for probs, visible in zip(self.probs, self.visible, strict=True):
            most = math.log(max(sum(visible), 1))
            values.append(_entropy(probs) / most if most else 1.0)
        return sum(values) / len(values)

    @property
    def effective_experts(self) -> float:
        r""":math:`\exp H(f)`, f the load's shares: E in balance, k if all rows take the same."""
        return math.exp(_entropy(self.load)) if sum(self.load) > 0 else 0.0

    @property
    def max_vio(self) -> float:
        r""":math:`\max_e c_e / \bar c_e - 1`, the worst overload (arXiv 2408.15664, section 4)."""
        pairs = zip(self.load, self.fair_load, strict=True)
        return max((c / fair - 1 for c, fair in pairs if fair > 0), default=0.0)

    def dead(self, share: float = 0.01) -> tuple[int, ...]:
        """Return the experts with less than `share` of their fair load, 0.01 N k / E by default."""
        pairs = zip(self.load, self.fair_load, strict=True)
        return tuple(e for e, (c, fair) in enumerate(pairs) if c < share * fair)

    @property
    def shares(self) -> tuple[tuple[float, ...], ...]:
        """Each gate's mass by expert, (T, E), rows that sum to 1."""
        return tuple(tuple(m / (sum(row) or 1.0) for m in row) for row in self.mass)

    @property
    def occupancy(self) -> tuple[float, ...]:
        """The largest part of each expert's mass that is one task's, (E,): 1 / T if all use it."""
        return tuple(
            max(column) / (sum(column) or 1.0) for column in zip(*self.shares, strict=True)
        )

    @property
    def occupants(self) -> tuple[str, ...]:
        """The task that has that part."""
        columns = zip(*self.shares, strict=True)
        return tuple(self.tasks[column.index(max(column))] for column in columns)

    def __add__(self, later: "Health") -> "Health":
        """Return the numbers of two intervals as of one; outputs as they were seen last."""
        seen = self if later.zero_share is None else later
        return replace(
            seen,
            rows=tuple(map(add, self.rows, later.rows)),
            counts=_sums(self.counts, later.counts),
            mass=_sums(self.mass, later.mass),
            probs=_sums(self.probs, later.probs),
        )

    def summary(self) -> dict[str, float]:
        """Return what says in five numbers how the experts are used."""
        return {
            "gate_entropy": self.gate_entropy,
            "effective_experts": self.effective_experts,
            "max_vio": self.max_vio,
            "dead_experts": float(len(self.dead())),
            "slots_per_row": sum(self.load) / (sum(self.rows) or 1.0),
        }

    def metrics(self) -> dict[str, float]:
        """Return one number for each name, for a log."""
        total = sum(self.load) or 1.0
        found = self.summary()
        columns: dict[str, Sequence[float]] = {"load": [c / total for c in self.load]}
        if len(self.tasks) > 1:
            columns["occupancy"] = self.occupancy
        if self.zero_share is not None and self.scale is not None:
            columns |= {"zero_share": self.zero_share, "scale": self.scale}
        if self.similarity is not None and self.num_experts > 1:
            found["max_similarity"] = max(
                value for e, row in enumerate(self.similarity) for value in row[:e]
            )
        for column, values in columns.items():
            found |= {f"{column}/{e}": value for e, value in enumerate(values)}
        return {f"{self.name}/{key}": value for key, value in found.items()}


def _sums(
    first: tuple[tuple[float, ...], ...], second: tuple[tuple[float, ...], ...]
) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(add, a, b)) for a, b in zip(first, second, strict=True))


def _entropy(weights: Sequence[float]) -> float:
    total = sum(weights)
    return -sum(w / total * math.log(w / total) for w in weights if w > 0)
