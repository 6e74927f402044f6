"""Who the users are and what the items are, and what a user who has clicked does next.

Shapes: U users, I items, K clicks a user remembers, R rows of a chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DAYS = 10
FACTORS = 6
MEMORY = 5
COUNTRIES, INTERESTS, CATEGORIES, TOPICS = 20, 40, 30, 100
_SAME_CATEGORY, _MOST_SAME, _SAME_ITEM = 1.2, 3, -2.0
_NOTHING = -1

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """All that the rows of one simulation share: who the users are and what the items are."""

    correlation: float
    country: Ints
    age: Ints
    interests: Ints
    item_category: Ints
    item_topics: Ints
    item_brand: Ints
    item_price: Floats
    user_click: Floats
    user_conversion: Floats
    item_click: Floats
    item_conversion: Floats
    user_bias: Floats
    item_bias: Floats
    item_quality: Floats
    trend: Floats


class Memory:
    """The categories and items of the last clicks of every user, the newest first.

    What a user clicked makes the category more attractive, by how many of the last clicks were of
    it, and an item seen before less so.
    """

    def __init__(self, users: int) -> None:
        self.category_UK = np.full((users, MEMORY), _NOTHING, np.int32)
        self.item_UK = np.full((users, MEMORY), _NOTHING, np.int32)

    def click(
        self, user_R: Ints, category_R: Ints, item_R: Ints, logit_R: Floats, draw_R: Floats
    ) -> tuple[Floats, Bools]:
        """Return the click logits with what users remember, and the clicks; remember those.

        Rows are in the order of time. The first rows of all users come at once, then the second
        ones, and so on: whom a row is about has only rows before it in memory.

        Args:
            user_R: Users.
            category_R: Categories of the items.
            item_R: Items.
            logit_R: The logits of a click without any memory.
            draw_R: Numbers from 0 to 1: a row below its probability is a click.
        """
        logit_R, clicked_R = logit_R.copy(), np.zeros(len(user_R), bool)
        for rows in _rounds(user_R):
            user, category, item = user_R[rows], category_R[rows], item_R[rows]
            same = (self.category_UK[user] == category[:, None]).sum(1).clip(max=_MOST_SAME)
            seen = (self.item_UK[user] == item[:, None]).any(1)
            logit_R[rows] += _SAME_CATEGORY * same + _SAME_ITEM * seen
            clicked = draw_R[rows] < sigmoid(logit_R[rows])
            clicked_R[rows] = clicked
            for memory, newest in ((self.category_UK, category), (self.item_UK, item)):
                kept = memory[user[clicked], :-1]
                memory[user[clicked]] = np.column_stack([newest[clicked], kept])
        return logit_R, clicked_R


def _rounds(user_R: Ints) -> list[Ints]:
    """Return the rows in rounds, each with at most one row of a user and those in order."""
    order = np.argsort(user_R, kind="stable")
    users = user_R[order]
    starts = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    by_round = np.argsort(place, kind="stable")
    bounds = np.flatnonzero(np.diff(place[by_round])) + 1
    return np.split(order[by_round], bounds)


def make_world(rows: int, seed: int, correlation: float) -> World:
    """Draw users and items: one user per 40 rows, one item per 100."""
    random = stream(seed, 0)
    users, items = max(50, rows // 40), max(30, rows // 100)
    normal = random.standard_normal

    def taste(groups: int) -> Callable[[Ints], Floats]:
        table = normal((groups, FACTORS))
        return lambda codes: table[codes]

    country = skewed(random, users, COUNTRIES, 2.0)
    interests = random.integers(0, INTERESTS, (users, 3))
    category = skewed(random, items, CATEGORIES, 1.5)
    topics = random.integers(0, TOPICS, (items, 3))

    def user_taste() -> Floats:
        seen: Floats = 0.6 * taste(COUNTRIES)(country) + taste(INTERESTS)(interests).mean(1) * 1.2
        return seen + 0.5 * normal((users, FACTORS))

    def item_taste() -> Floats:
        seen: Floats = 0.7 * taste(CATEGORIES)(category) + taste(TOPICS)(topics).mean(1) * 1.1
        return seen + 0.5 * normal((items, FACTORS))

    return World(
        correlation=correlation,
        country=country,
        age=random.integers(16, 80, users),
        interests=interests,
        item_category=category,
        item_topics=topics,
        item_brand=random.integers(0, max(5, items // 20), items),
        item_price=np.exp(3 + 0.8 * normal(items)),
        user_click=user_taste(),
        user_conversion=user_taste(),
        item_click=item_taste(),
        item_conversion=item_taste(),
        user_bias=normal(users),
        item_bias=normal(items),
        item_quality=normal(items),
        trend=normal((DAYS, CATEGORIES)),
    )


def stream(*key: int) -> np.random.Generator:
    """Return the random stream of a key, the same on every machine."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def skewed(random: np.random.Generator, size: int, groups: int, power: float) -> Ints:
    """Draw group numbers of which the small ones are common: density falls as a power."""
    return (groups * random.random(size) ** power).astype(np.int64)


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))
