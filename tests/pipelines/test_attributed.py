"""Laws of attribution in one bucket, against a dictionary at a time."""

from collections import Counter
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pipelines.dataset.task_roles import EventLabel, TaskRole
from pipelines.events.attributed import (
    MICROS_PER_HOUR,
    Attributed,
    LogRows,
    add_counts,
    attribute_bucket,
)
from recsys_moe.errors import SpecError

LOGS = ("clicks", "carts", "conversions", "likes")
JOIN = "request"


def task(name: str, log: str, hours: float | None, after: str | None, **more: Any) -> TaskRole:
    label = EventLabel(log=log, attribution_hours=hours, after=after, value=more.pop("value", None))
    plain = {"column": f"label {name}", "positive": None, "negative": None, "space": "all"}
    return TaskRole(path=f"tasks[{name}]", name=name, weight=1.0, events=label, **plain, **more)


TASKS = [
    task("sale_9h", "conversions", 9, "clicks"),
    task("click", "clicks", None, None),
    task("sale_3h", "conversions", 3, "clicks"),
    task("cart", "carts", 5.5, None),
    task("spent", "conversions", 9, "clicks", value="value", kind="regression"),
    task("like", "likes", 4, "carts"),
    task("liked", "likes", None, None),
]


def name(number: int, text: bool) -> Any:
    return f"r-{number}" if text else number


def bucket(seed: int, text: bool = True) -> tuple[pl.DataFrame, list[LogRows]]:
    """Impressions, some twice or nameless; events repeated, late, early, orphaned, incomplete."""
    draw = np.random.default_rng(seed)
    size = 900
    number = draw.integers(0, 800, size)
    at = draw.integers(10, 60, size) * MICROS_PER_HOUR
    ids = [
        None if x < 0.03 else name(n, text) for n, x in zip(number, draw.random(size), strict=True)
    ]
    shown = pl.DataFrame({"row_id": draw.permutation(5 * size)[:size], "id": ids, "time": at})
    logs = []
    for place, log in enumerate(LOGS):
        picked = draw.integers(0, size, 700)
        delay = draw.integers(-2, 6 + 3 * place, 700) * MICROS_PER_HOUR // 2
        odd = draw.random((4, 700))
        of = [
            None if x < 0.02 else name(10_000, text) if x > 0.97 else ids[p]
            for p, x in zip(picked, odd[0], strict=True)
        ]
        time = [
            None if x < 0.02 else int(at[p] + d)
            for p, d, x in zip(picked, delay, odd[1], strict=True)
        ]
        worth = [
            None if x < 0.1 else float("nan") if x > 0.9 else y
            for x, y in zip(odd[2], draw.normal(size=700) * 1e6, strict=True)
        ]
        rows = {"row_id": draw.permutation(700), "id": of, "time": time, "value": worth}
        logs.append(LogRows(log, f"{log}.of", f"{log}.ts", pl.DataFrame(rows)))
    return shown, logs


def words(label: EventLabel, start: int | None, time: int) -> str | None:
    """Why an event can have nothing to do with a label."""
    if label.after is not None and start is None:
        known = {"clicks": "no click of its impression"}
        return known.get(label.after, f"no event of its impression in {label.after}")
    if label.after is not None and time < start:
        known = {"clicks": "before the first click"}
        return known.get(label.after, f"before its impression's first event in {label.after}")
    if label.after is None and label.attribution_hours is not None and time < start:
        return "before its impression"
    return None


def oracle(shown: pl.DataFrame, logs: list[LogRows]) -> dict[str, Any]:
    owner: dict[Any, dict[str, Any]] = {}
    rows, duplicates = [], []
    for row in sorted(shown.to_dicts(), key=lambda row: row["row_id"]):
        if row["id"] is not None and row["id"] in owner:
            duplicates.append(row["row_id"])
            continue
        rows.append(row)
        if row["id"] is not None:
            owner[row["id"]] = row
    first: dict[str, dict[Any, int]] = {}
    found: dict[str, dict[Any, list[dict[str, Any]]]] = {one.name: {} for one in TASKS}
    bad: list[tuple[str, int, str]] = []
    for log in logs:
        first[log.name] = {}
        labels = [one for one in TASKS if one.events and one.events.log == log.name]
        for event in sorted(log.rows.to_dicts(), key=lambda row: row["row_id"]):
            of, time = event["id"], event["time"]
            reason = None
            if of is None:
                reason = f"{log.join}: missing"
            elif time is None:
                reason = f"{log.time}: missing"
            elif of not in owner:
                reason = f"{JOIN}: no such impression"
            else:
                reasons = []
                for one in labels:
                    after = one.events.after
                    start = first[after].get(of) if after else owner[of]["time"]
                    reasons.append(words(one.events, start, time))
                    if reasons[-1] is None:
                        found[one.name].setdefault(of, []).append({**event, "start": start})
                if None not in reasons:
                    reason = reasons[0]
            if reason:
                bad.append((log.name, event["row_id"], reason))
            else:
                first[log.name][of] = min(time, first[log.name].get(of, time))
    return {"rows": rows, "duplicates": duplicates, "first": first, "found": found, "bad": bad}


@pytest.mark.parametrize("text", [True, False])
def test_labels_are_those_that_a_loop_over_the_logs_gives(text: bool) -> None:
    for seed in range(3):
        shown, logs = bucket(seed, text)
        wanted = oracle(shown, logs)

        found = attribute_bucket(shown, list(reversed(logs)), TASKS, JOIN)

        assert found.labels["row_id"].to_list() == [row["row_id"] for row in wanted["rows"]]
        assert found.duplicates.to_list() == wanted["duplicates"]
        assert found.labels.columns == ["row_id", *(one.column for one in TASKS)]
        for one in TASKS:
            hours = one.events.attribution_hours
            window = float("inf") if hours is None else hours * MICROS_PER_HOUR
            timing = found.timings[one.name].to_dicts()
            for row, label, when in zip(
                wanted["rows"], found.labels[one.column], timing, strict=True
            ):
                events = wanted["found"][one.name].get(row["id"], [])
                in_time = [e for e in events if e["time"] - e["start"] <= window]
                if row["id"] is None:
                    assert label is None
                elif one.events.value is None:
                    assert label == int(bool(in_time))
                else:
                    known = [e["value"] for e in in_time]
                    known = [x for x in known if x is not None and np.isfinite(x)]
                    assert label == (reduce(add, known) if known else None)
                after = one.events.after
                start = wanted["first"][after].get(row["id"]) if after else row["time"]
                delay = min(e["time"] for e in events) - start if events else None
                assert when == {
                    "row_id": row["row_id"],
                    "time": row["time"],
                    "start": start,
                    "delay": delay,
                }


def test_events_that_are_nobodys_say_why() -> None:
    shown, logs = bucket(4)
    wanted = oracle(shown, logs)["bad"]

    bad = attribute_bucket(shown, logs, TASKS, JOIN).bad

    assert bad.rows() == wanted
    reasons = {reason for _, _, reason in wanted}
    assert {
        "no click of its impression",
        "before the first click",
        "before its impression",
    } < reasons
    assert not any(log == "likes" and "carts" in reason for log, _, reason in wanted)


def test_an_event_only_after_another_needs_that_one() -> None:
    shown, logs = bucket(5)
    tasks = [one for one in TASKS if one.name != "liked"]

    bad = attribute_bucket(shown, logs, tasks, JOIN).bad.filter(pl.col("log") == "likes")

    reasons = set(bad["reason"])
    assert "no event of its impression in carts" in reasons
    assert "before its impression's first event in carts" in reasons


def test_the_counts_of_a_log_close() -> None:
    shown, logs = bucket(6)
    wanted = oracle(shown, logs)

    counts = attribute_bucket(shown, logs, TASKS, JOIN).counts

    for log in logs:
        reasons = Counter(reason for of, _, reason in wanted["bad"] if of == log.name)
        one = counts[log.name]
        assert one["quarantine"] == reasons
        assert one["rows_quarantined"] == reasons.total()
        assert one["impressions"] == len(wanted["first"][log.name])
        assert one["rows_in"] == one["rows_quarantined"] + one["impressions"] + one["repeated"]
    late = {
        one.name: sum(
            event["time"] - event["start"] > one.events.attribution_hours * MICROS_PER_HOUR
            for events in wanted["found"][one.name].values()
            for event in events
        )
        for one in TASKS
        if one.events.attribution_hours is not None
    }
    assert {name: n for one in counts.values() for name, n in one.get("late", {}).items()} == late
    assert min(late.values()) > 0
    without = counts["conversions"]["without_value"]["spent"]
    assert without == sum(
        event["value"] is None or not np.isfinite(event["value"])
        for events in wanted["found"]["spent"].values()
        for event in events
    )


def part(frame: pl.DataFrame, of: int) -> pl.DataFrame:
    """The rows of one bucket of three: by the last digit of the id."""
    digit = pl.col("id").str.slice(-1).cast(pl.Int64).fill_null(0)
    return frame.filter(digit % 3 == of)


def whole_and_parts(seed: int) -> tuple[Attributed, list[Attributed]]:
    shown, logs = bucket(seed)
    parts = []
    for of in range(3):
        some = [LogRows(log.name, log.join, log.time, part(log.rows, of)) for log in logs]
        parts.append(attribute_bucket(part(shown, of).reverse(), some, TASKS, JOIN))
    return attribute_bucket(shown, logs, TASKS, JOIN), parts


def test_buckets_change_nothing() -> None:
    whole, parts = whole_and_parts(7)
    counts: dict[str, Any] = {}
    for one in parts:
        counts = add_counts(counts, one.counts)

    assert counts == whole.counts
    for frames, wanted in (
        ([one.labels for one in parts], whole.labels),
        ([one.bad for one in parts], whole.bad.sort("log", "row_id")),
        *(([one.timings[name] for one in parts], whole.timings[name]) for name in whole.timings),
    ):
        by = [name for name in ("log", "row_id") if name in wanted.columns]
        assert_frame_equal(pl.concat(frames).sort(by), wanted, check_exact=True)


def test_a_bucket_without_rows_or_events_is_no_special_case() -> None:
    shown, logs = bucket(8)
    silent = [LogRows(log.name, log.join, log.time, log.rows.clear()) for log in logs]

    quiet = attribute_bucket(shown, silent, TASKS, JOIN)
    empty = attribute_bucket(shown.clear(), logs, TASKS, JOIN)

    has_id = quiet.labels.filter(pl.col("label click").is_not_null())
    assert set(has_id["label click"]) == set(has_id["label sale_3h"]) == {0}
    assert quiet.labels["label spent"].null_count() == len(quiet.labels)
    assert quiet.labels.schema == empty.labels.schema
    assert quiet.bad.schema == empty.bad.schema
    assert len(empty.labels) == len(quiet.bad) == 0
    assert len(empty.bad) == sum(len(log.rows) for log in logs)


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([task("a", "clicks", 1, "clicks")], r"tasks\[a\].label.after: wanted .* got 'clicks'"),
        ([task("a", "clicks", 1, "cliks")], r"tasks\[a\].label.after: wanted .* got 'cliks'"),
        (
            [task("a", "clicks", 1, "carts"), task("b", "carts", 1, "clicks")],
            r"tasks\[a\].label.after: wanted a log that does not lead back",
        ),
    ],
)
def test_a_label_after_itself_is_refused(tasks: list[TaskRole], words: str) -> None:
    shown, logs = bucket(9)

    with pytest.raises(SpecError, match=words):
        attribute_bucket(shown, logs[:2], tasks, JOIN)
