"""The dearest experts that gates can choose for a row, beside all that they could choose."""

import random
from itertools import combinations, product

import pytest

from recsys_moe.moe.accounts_parts import Choice, Expert
from recsys_moe.moe.accounts_union import largest_union

EVERYONE = frozenset({"all"})


def brute_force(choices: list[Choice]) -> int:
    """Try every set that every gate may choose."""
    own = [list(combinations(c.experts, min(c.slots, len(c.experts)))) for c in choices]
    unions = ({e for chosen in row for e in chosen} for row in product(*own))
    return max(sum(expert.parameters for expert in union) for union in unions)


@pytest.mark.parametrize("seed", range(60))
def test_it_is_the_dearest_of_all_unions(seed: int) -> None:
    chance = random.Random(seed)
    experts = [Expert(f"{e}", chance.choice([0, 1, 2, 5, 9]), 0) for e in range(6)]
    choices = []
    for _ in range(chance.randint(1, 4)):
        seen = tuple(chance.sample(experts, chance.randint(1, 6)))
        choices.append(Choice(EVERYONE, chance.randint(0, 3), seen))

    assert largest_union(choices, lambda expert: expert.parameters) == brute_force(choices)


def test_no_gate_uses_nothing() -> None:
    assert largest_union([], lambda expert: expert.parameters) == 0
