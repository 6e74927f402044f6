"""Simulated logs of impressions and what followed them, with a known truth, of any size.

What a user thinks of an item is partly visible (country, interests, category, topics), partly
known by the ids alone. Clicks depend on it, on position, query, hour and day, and on what the user
clicked before; conversions, given a click, on a mixture of the same and of their own:
`correlation` says how much. Likes and the seconds spent after a click follow the clicks' taste and
the item's quality. Ids follow a power law, the popular items change by the day. The rows come in
time order, chunk by chunk, each from its own random stream: memory is bounded and the same seed
gives the same files.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.simulated.funnel_world import (
    CATEGORIES,
    DAYS,
    FACTORS,
    Ints,
    Memory,
    World,
    make_world,
    sigmoid,
    skewed,
    stream,
)
from recsys_moe.files import claim, finish, whole_file
from recsys_moe.progress import progress

START = 1_767_225_600_000_000  # 2026-01-01, microseconds UTC
DAY = 86_400_000_000
ATTRIBUTION_HOURS = 72
UNTIL = START + 14 * DAY  # the logs of events are complete up to here
CHUNK_ROWS = 200_000
LOGS = ("impressions", "clicks", "conversions", "likes", "dwell", "truth")
VERSION = 2  # of the simulation: one more when other logs come out of the same request
CAMPAIGNS = 500
MEAN_DELAY_HOURS = 12.0
_DWELL_SPREAD = 0.6


def simulate(folder: Path, *, rows: int, seed: int, correlation: float) -> None:
    """Write `impressions/`, `clicks/`, `conversions/`, `likes/`, `dwell/` and `truth/`.

    Args:
        folder: Where the logs go; a finished simulation is left as it is, of an interrupted one
            only the missing files are written.
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
    world = make_world(rows, seed, correlation)
    memory = Memory(len(world.country))
    with progress("simulate", rows) as advance:
        for chunk, first in enumerate(range(0, rows, CHUNK_ROWS)):
            ids = np.arange(first, min(first + CHUNK_ROWS, rows))
            paths = {log: folder / log / f"part-{chunk:05}.parquet" for log in LOGS}
            frames = _chunk(world, memory, ids, rows, stream(seed, 1, chunk))
            for log, path in paths.items():
                if not path.exists():
                    with whole_file(path) as partial:
                        frames[log].write_parquet(partial, row_group_size=65_536)
            advance(len(ids))
    finish(folder, request)


def schemas() -> dict[str, dict[str, pl.DataType]]:
    """Return the columns of each log, known before anything is simulated."""
    world = make_world(1, 0, 0.0)
    frames = _chunk(world, Memory(len(world.country)), np.arange(1), 1, stream(0))
    return {log: dict(frame.schema) for log, frame in frames.items()}


def _chunk(
    world: World, memory: Memory, ids: Ints, rows: int, random: np.random.Generator
) -> dict[str, pl.DataFrame]:
    size = len(ids)
    share = (ids + random.random(size)) / rows
    ts = START + (share * DAYS * DAY).astype(np.int64)
    day, hour = (ts - START) // DAY, (ts // 3_600_000_000) % 24
    user = skewed(random, size, len(world.country), 2.0)
    item = (skewed(random, size, len(world.item_category), 3.0) + day * 7) % len(
        world.item_category
    )
    position = random.integers(0, 10, size)
    category = world.item_category[item]
    asked = np.where(random.random(size) < 0.5, category, random.integers(0, CATEGORIES, size))
    has_query = random.random(size) < 0.6
    device, campaign = random.integers(0, 4, size), skewed(random, size, CAMPAIGNS, 2.0)

    click_taste = (world.user_click[user] * world.item_click[item]).sum(1) / FACTORS**0.5
    own_taste = (world.user_conversion[user] * world.item_conversion[item]).sum(1) / FACTORS**0.5
    rho = world.correlation
    taste = rho * click_taste + (1 - rho**2) ** 0.5 * own_taste
    price = (np.log(world.item_price[item]) - 3) / 0.8
    click_logit = (
        -2.4
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
    like_logit = (
        -3.2
        + 0.5 * click_taste
        + 0.4 * world.user_bias[user]
        + 0.5 * world.item_quality[item]
        + 0.6 * (device == 0)
    )
    dwell_mean = 2.5 + 0.4 * click_taste + 0.4 * world.item_quality[item] - 0.3 * (device == 0)
    remembered, clicked = memory.click(user, category, item, click_logit, random.random(size))
    p_click, p_convert = sigmoid(remembered), sigmoid(conversion_logit)
    converted = clicked & (random.random(size) < p_convert)
    click_ts = ts + (random.exponential(20e6, size)).astype(np.int64)
    delay = random.exponential(MEAN_DELAY_HOURS * 3600e6, size).astype(np.int64)
    p_like = sigmoid(like_logit)
    liked = random.random(size) < p_like
    like_ts = ts + random.exponential(30e6, size).astype(np.int64)
    dwell = np.exp(dwell_mean + _DWELL_SPREAD * random.standard_normal(size)).astype(np.float32)

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
    left = click_ts + (dwell * 1e6).astype(np.int64)
    return {
        "impressions": impressions,
        "clicks": _events(ids[clicked], click_ts[clicked]),
        "conversions": _events(ids[converted], (click_ts + delay)[converted]),
        "likes": _events(ids[liked], like_ts[liked]),
        "dwell": _events(ids[clicked], left[clicked]).with_columns(seconds=dwell[clicked]),
        "truth": pl.DataFrame(
            {
                "impression_id": ids,
                "p_click": p_click,
                "p_conversion": p_convert * in_time,
                "p_click_and_conversion": p_click * p_convert * in_time,
                "p_like": p_like,
                "y_dwell": np.exp(dwell_mean + _DWELL_SPREAD**2 / 2),
                "p_click_without_memory": sigmoid(click_logit),
            }
        ),
    }


def _events(ids: Ints, ts: Ints) -> pl.DataFrame:
    """Return a log of events, their times in UTC."""
    when = pl.Series(ts).cast(pl.Datetime("us", "UTC"))
    return pl.DataFrame({"impression_id": ids, "ts": when})


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
