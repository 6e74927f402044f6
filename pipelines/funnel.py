"""Simulated impression, click and conversion logs with a known truth, of any size.

What a user thinks of an item is partly visible (country, interests, category, topics), partly known
by the ids alone. Clicks depend on it, on position, query, hour and day; conversions, given a click,
on a mixture of the same and of their own: `correlation` says how much. Ids follow a power law, the
popular items change by the day. The rows come in time order, chunk by chunk, each from its own
random stream: memory is bounded and the same seed gives the same files.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys_moe.files import claim, finish, whole_file
from recsys_moe.progress import progress

START = 1_767_225_600_000_000  # 2026-01-01, microseconds UTC
DAYS = 10
DAY = 86_400_000_000
ATTRIBUTION_HOURS = 72
CHUNK_ROWS = 200_000
LOGS = ("impressions", "clicks", "conversions", "truth")
FACTORS = 6
VERSION = 1  # of the simulation: one more when other logs come out of the same request
COUNTRIES, INTERESTS, CATEGORIES, TOPICS, CAMPAIGNS = 20, 40, 30, 100, 500
MEAN_DELAY_HOURS = 12.0

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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


def simulate(folder: Path, *, rows: int, seed: int, correlation: float) -> None:
    """Write `impressions/`, `clicks/`, `conversions/` and `truth/` under a folder.

    Args:
        folder: Where the four logs go; a finished simulation is left as it is, an interrupted
            one is continued after its last whole chunk.
        rows: Impressions over all ten days.
        seed: The same seed, rows and correlation give the same files.
        correlation: Share of the clicks' taste in that of conversions, -1 to 1.

    Raises:
        RequestError: The folder holds another simulation, or something else.
    """
    request = {"version": VERSION, "rows": rows, "seed": seed, "correlation": correlation}
    if claim(folder, request, overwrite=False):
        return
    for torn in folder.glob("*/.*.tmp"):
        torn.unlink()
    world = _world(rows, seed, correlation)
    with progress("simulate", rows) as advance:
        for chunk, first in enumerate(range(0, rows, CHUNK_ROWS)):
            ids = np.arange(first, min(first + CHUNK_ROWS, rows))
            paths = {log: folder / log / f"part-{chunk:05}.parquet" for log in LOGS}
            if not all(path.exists() for path in paths.values()):
                frames = _chunk(world, ids, rows, _stream(seed, 1, chunk))
                for log, path in paths.items():
                    with whole_file(path) as partial:
                        frames[log].write_parquet(partial, row_group_size=65_536)
            advance(len(ids))
    finish(folder, request)


def schemas() -> dict[str, dict[str, pl.DataType]]:
    """Return the columns of each log, known before anything is simulated."""
    frames = _chunk(_world(1, 0, 0.0), np.arange(1), 1, _stream(0))
    return {log: dict(frame.schema) for log, frame in frames.items()}


def _world(rows: int, seed: int, correlation: float) -> World:
    random = _stream(seed, 0)
    users, items = max(50, rows // 40), max(30, rows // 100)
    normal = random.standard_normal

    def taste(groups: int) -> Callable[[Ints], Floats]:
        table = normal((groups, FACTORS))
        return lambda codes: table[codes]

    country = _skewed(random, users, COUNTRIES, 2.0)
    interests = random.integers(0, INTERESTS, (users, 3))
    category = _skewed(random, items, CATEGORIES, 1.5)
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


def _chunk(
    world: World, ids: Ints, rows: int, random: np.random.Generator
) -> dict[str, pl.DataFrame]:
    size = len(ids)
    share = (ids + random.random(size)) / rows
    ts = START + (share * DAYS * DAY).astype(np.int64)
    day, hour = (ts - START) // DAY, (ts // 3_600_000_000) % 24
    user = _skewed(random, size, len(world.country), 2.0)
    item = (_skewed(random, size, len(world.item_category), 3.0) + day * 7) % len(
        world.item_category
    )
    position = random.integers(0, 10, size)
    category = world.item_category[item]
    asked = np.where(random.random(size) < 0.5, category, random.integers(0, CATEGORIES, size))
    has_query = random.random(size) < 0.6
    device, campaign = random.integers(0, 4, size), _skewed(random, size, CAMPAIGNS, 2.0)

    click_taste = (world.user_click[user] * world.item_click[item]).sum(1) / FACTORS**0.5
    own_taste = (world.user_conversion[user] * world.item_conversion[item]).sum(1) / FACTORS**0.5
    rho = world.correlation
    taste = rho * click_taste + (1 - rho**2) ** 0.5 * own_taste
    price = (np.log(world.item_price[item]) - 3) / 0.8
    click_logit = (
        -2.3
        + 0.8 * click_taste
        + 0.5 * world.user_bias[user]
        + 0.6 * world.item_bias[item]
        - 0.15 * (position - 4.5)
        + 0.9 * (has_query & (asked == category))
        + 0.3 * np.sin(hour / 24 * 2 * np.pi)
        + 0.3 * world.trend[day, category]
        + 0.2 * (device == 1)
    )
    conversion_logit = (
        -1.8
        + 0.8 * taste
        + 0.4 * rho * world.user_bias[user]
        + 0.7 * world.item_quality[item]
        - 0.5 * price
        + 0.3 * (device == 0)
        + 0.01 * (world.age[user] - 45)
    )
    in_time = -np.expm1(-ATTRIBUTION_HOURS / MEAN_DELAY_HOURS)
    p_click, p_convert = _sigmoid(click_logit), _sigmoid(conversion_logit)
    clicked = random.random(size) < p_click
    converted = clicked & (random.random(size) < p_convert)
    click_ts = ts + (random.exponential(20e6, size)).astype(np.int64)
    delay = random.exponential(MEAN_DELAY_HOURS * 3600e6, size).astype(np.int64)

    def hide(share: float) -> NDArray[np.bool_]:
        return random.random(size) >= share

    impressions = pl.DataFrame(
        {
            "impression_id": ids,
            "ts": ts,
            "user_id": _names("u", user),
            "item_id": item * 17 + 1_000_003,
            "country": _names("country-", world.country[user]),
            "age": _masked(world.age[user], hide(0.1)),
            "device": pl.Series(np.array(["phone", "desktop", "tablet", "tv"])[device]),
            "interests": _list(
                _names("tag-", world.interests[user].ravel()), 3, random, size, hide(0.05)
            ),
            "category": _names("category-", category),
            "brand": _names("brand-", world.item_brand[item]),
            "price": _masked(world.item_price[item].astype(np.float32), hide(0.03)),
            "topics": _list(
                pl.Series(world.item_topics[item].ravel()), 3, random, size, hide(0.05)
            ),
            "campaign": _names("campaign-", campaign),
            "query": _masked_series(_names("category-", asked), has_query),
            "position": position,
            "hour": hour,
        }
    ).with_columns(pl.col("ts").cast(pl.Datetime("us", "UTC")))
    when = pl.Datetime("us", "UTC")
    return {
        "impressions": impressions,
        "clicks": pl.DataFrame(
            {"impression_id": ids[clicked], "ts": click_ts[clicked]}
        ).with_columns(pl.col("ts").cast(when)),
        "conversions": pl.DataFrame(
            {"impression_id": ids[converted], "ts": (click_ts + delay)[converted]}
        ).with_columns(pl.col("ts").cast(when)),
        "truth": pl.DataFrame(
            {
                "impression_id": ids,
                "p_click": p_click,
                "p_conversion": p_convert * in_time,
                "p_click_and_conversion": p_click * p_convert * in_time,
            }
        ),
    }


def _stream(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _skewed(random: np.random.Generator, size: int, groups: int, power: float) -> Ints:
    """Draw group numbers of which the small ones are common: density falls as a power."""
    return (groups * random.random(size) ** power).astype(np.int64)


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def _names(prefix: str, codes: Ints) -> pl.Series:
    return pl.select(pl.lit(prefix) + pl.Series(codes).cast(pl.String)).to_series()


def _masked_series(values: pl.Series, keep: NDArray[np.bool_]) -> pl.Series:
    return pl.select(pl.when(pl.Series(keep)).then(values)).to_series()


def _masked(values: NDArray[Any], keep: NDArray[np.bool_]) -> pl.Series:
    return _masked_series(pl.Series(values), keep)


def _list(
    flat: pl.Series, width: int, random: np.random.Generator, size: int, keep: NDArray[np.bool_]
) -> pl.Series:
    """Cut rows of `width` values to random lengths, one value in fifty null, some lists null."""
    holes = _masked_series(flat, random.random(size * width) >= 0.02)
    lengths = pl.Series(random.integers(0, width + 1, size))
    lists = holes.reshape((size, width)).arr.to_list()
    cut = pl.select(pl.lit(lists).list.head(pl.lit(lengths))).to_series()
    return _masked_series(cut, keep)
