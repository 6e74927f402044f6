"""What in a features report deserves a look, computed from the report's own numbers."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

_RARELY, _OFTEN_UNSEEN, _COVERAGE_MOVED = 0.5, 0.2, 0.1
_QUARANTINE_SHARE = 0.001
_FEW_POSITIVES = 100
_RATE_MOVED, _SIGMAS = 0.2, 4.0
_LARGE_TABLE_BYTES = 2**30
_LEVELS = ("alarm", "warning", "note")
_OTHERS = ("valid", "test")

Warnings = Iterator[dict[str, str]]


def warnings(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what deserves a look, the gravest first: level, what it is about, one sentence."""
    found = [
        *_rows(report),
        *_labels(report),
        *_drift(report),
        *_features(report),
        *_tables(report),
    ]
    return sorted(found, key=lambda warning: _LEVELS.index(warning["level"]))


def _warning(level: str, about: str, text: str) -> dict[str, str]:
    return {"level": level, "about": about, "text": text}


def _rows(report: Mapping[str, Any]) -> Warnings:
    bad, rows_in = report["rows_quarantined"], report["rows_in"]
    if bad > _QUARANTINE_SHARE * rows_in:
        reason = max(report["quarantine"], key=report["quarantine"].get)
        text = (
            f"{bad:,} of {rows_in:,} rows ({bad / rows_in:.2%}) are in quarantine, most: {reason}"
        )
        yield _warning("warning", "rows", text)
    for name, log in report["events"].items():
        bad, rows_in = log.get("rows_quarantined", 0), log.get("rows_in", 0)
        if bad > _QUARANTINE_SHARE * rows_in:
            reason = max(log["quarantine"], key=log["quarantine"].get)
            text = f"{bad:,} of {rows_in:,} ({bad / rows_in:.2%}) are in quarantine, most: {reason}"
            yield _warning("warning", f"log {name}", text)


def _labels(report: Mapping[str, Any]) -> Warnings:
    for name in report["tasks"]:
        train = report["splits"]["train"]["tasks"][name]
        if "unsampled_rate" in train or "weighted_rate" in train:
            before = rate_before_sampling(train)
            text = f"train counts {train['rate']:.2%} positives, {before:.2%} before sampling or "
            text += "weighting: what is said of its values is said of the rows that are left"
            yield _warning("note", f"task {name}", text)
        for split, content in report["splits"].items():
            task = content["tasks"][name]
            if "positives" not in task:
                continue
            fewer = min(task["positives"], task["known"] - task["positives"])
            if fewer < _FEW_POSITIVES:
                word = "positives" if fewer == task["positives"] else "negatives"
                text = f"{split} has {fewer:,} {word}: whatever is measured on them is noisy"
                yield _warning("warning", f"task {name}", text)
            elif split != "train" and _rate_moved(train, task):
                before = rate_before_sampling(train)
                text = f"the label rate is {task['rate']:.2%} in {split}, {before:.2%} in train"
                yield _warning("warning", f"task {name}", text)


def rate_before_sampling(task: Mapping[str, Any]) -> Any:
    """Return the rate of a task had its labels not been weighted nor its negatives thinned."""
    return task.get("weighted_rate", task.get("unsampled_rate", task["rate"]))


def _rate_moved(train: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Say whether a rate is a fifth away from that of train, and more than chance would do."""
    p, q = rate_before_sampling(train), other["rate"]
    if not p or q is None:
        return False
    deviation = math.sqrt(p * (1 - p) * (1 / train["known"] + 1 / other["known"]))
    return bool(abs(q - p) > max(_RATE_MOVED * p, _SIGMAS * deviation))


def _drift(report: Mapping[str, Any]) -> Warnings:
    drift = report["drift"]
    for split in drift["psi"]:
        if split not in drift["judged"]:
            least = drift["judged_from_rows"]
            text = f"drift is not judged: train and {split} need {least:,} rows each"
            yield _warning("note", f"split {split}", text)
    for name in report["features"]:
        values = {split: drift["psi"][split][name] or 0.0 for split in drift["judged"]}
        far = {split: value for split, value in values.items() if value > drift["warn"]}
        if far:
            level = "alarm" if max(far.values()) > drift["alarm"] else "warning"
            words = " and ".join(f"{split} (PSI {value:.3f})" for split, value in far.items())
            text = f"not distributed as in train: {words}"
            yield _warning(level, f"feature {name}", text)


def _features(report: Mapping[str, Any]) -> Warnings:
    splits = report["splits"]
    for name, feature in report["features"].items():
        about, train = f"feature {name}", splits["train"]["features"][name]
        if feature["constant"]:
            yield _warning("warning", about, "constant in train: it teaches nothing")
            continue
        if train["coverage"] is not None and train["coverage"] < _RARELY:
            yield _warning(
                "note", about, f"only {train['coverage']:.1%} of train rows have a value"
            )
        there = train["coverage"] or 0.0
        here = {split: splits[split]["features"][name]["coverage"] or 0.0 for split in _OTHERS}
        if any(abs(value - there) > _COVERAGE_MOVED for value in here.values()):
            text = f"coverage is {there:.1%} in train, {_shares(here)}"
            yield _warning("warning", about, text)
        unseen = {split: splits[split]["features"][name].get("oov_rate") or 0 for split in _OTHERS}
        if max(unseen.values()) > _OFTEN_UNSEEN:
            text = f"of its values, outside the vocabulary are {_shares(unseen)}"
            yield _warning("warning", about, text)


def _shares(values: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.1%} in {split}" for split, value in values.items())


def _tables(report: Mapping[str, Any]) -> Warnings:
    for table in report["vocabularies"]:
        size = table["bytes_at_width_16"]
        if size > _LARGE_TABLE_BYTES:
            text = f"{table['codes']:,} codes: {size / 2**30:.1f} GiB at width 16"
            yield _warning("warning", f"table {table['table']}", text)
