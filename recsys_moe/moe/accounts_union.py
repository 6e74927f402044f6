"""The most that one row can use, where several gates choose among the same experts."""

from collections.abc import Callable, Sequence

from recsys_moe.moe.accounts_parts import Choice, Expert


def largest_union(choices: Sequence[Choice], cost: Callable[[Expert], int]) -> int:
    """Return the largest cost of the experts that gates can choose for one row, each counted once.

    A set of experts can be chosen if each finds a slot of a gate that sees it. Such sets are the
    independent sets of a transversal matroid (Edmonds and Fulkerson, 1965), in which it is enough
    to take the dearest first.
    """
    experts = {expert.name: expert for choice in choices for expert in choice.experts}
    seen = [{expert.name for expert in choice.experts} for choice in choices]
    taken: list[list[str]] = [[] for _ in choices]

    def place(name: str, tried: set[int]) -> bool:
        """Give an expert a slot, moving others to further gates that see them if it must be."""
        for gate, choice in enumerate(choices):
            if gate in tried or name not in seen[gate]:
                continue
            tried.add(gate)
            if len(taken[gate]) < choice.slots:
                taken[gate].append(name)
                return True
            for slot, other in enumerate(taken[gate]):
                if place(other, tried):
                    taken[gate][slot] = name
                    return True
        return False

    dearest_first = sorted(experts.values(), key=cost, reverse=True)
    return sum(cost(expert) for expert in dearest_first if place(expert.name, set()))
