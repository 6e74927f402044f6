"""What the features hold, for a program (`report.json`) and for a person (`report.html`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines.dataset.roles import SPLITS
from pipelines.plans import collect
from pipelines.report.drift import (
    ALARM,
    JUDGED_FROM_ROWS,
    WARN,
    Counts,
    DriftBins,
    check_drift,
    drift_of,
    psi_parts,
    quantile_edges,
)
from pipelines.report.report_page import page
from pipelines.report.report_warnings import warnings
from pipelines.report.tally import Tally, components, sample_numbers, share, tally_split
from recsys_moe.feature import KINDS
from recsys_moe.files import write_json, write_text
from recsys_moe.spec import FIRST_OOV, Bucketized, Feature, FeatureSpec, Table

__all__ = ["BuildCounts", "check_drift", "write_report"]

WIDTH = 16
_BYTES = 4
_MOST_MOVED, _MOST_BINS, _MOVED = 6, 6, 0.02
_RARE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildCounts:
    """Where the rows of a build went, and what else only the build knows.

    `dropped` are rows left out on purpose (immature labels, thinned negatives, the gap between
    splits) and `quarantined` those that cannot be used, each by reason. `events` holds, by log,
    what joining found; `growth` what a re-fit kept and added. `time` is the column of `prepared/`
    with the microseconds by which label rates are given per day.
    """

    dataset: str
    rows_in: int
    rows: Mapping[str, int]
    dropped: Mapping[str, int] = field(default_factory=dict)
    quarantined: Mapping[str, int] = field(default_factory=dict)
    events: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    growth: Mapping[str, Any] | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        """Refuse counts that do not close: a row that came has gone somewhere."""
        parts = [sum(part.values()) for part in (self.rows, self.dropped, self.quarantined)]
        if self.rows_in != sum(parts):
            out, dropped, quarantined = parts
            raise RuntimeError(
                f"{self.rows_in} rows came; {out} went out, {dropped} were dropped and "
                f"{quarantined} quarantined"
            )


def write_report(output: Path, spec: FeatureSpec, counts: BuildCounts) -> dict[str, Any]:
    """Write `report.json` and `report.html` from a finished features folder.

    Each split is read once, some rows at a time, so that memory grows with the tables and not with
    the rows.

    Args:
        output: The folder, with tensors, prepared rows and vocabularies.
        spec: What was fitted.
        counts: Where the rows went.

    Returns:
        The content of `report.json`.
    """
    sample = sample_numbers(spec, output)
    edges = {
        name: [quantile_edges(values_ND[:, place]) for place in components(values_ND.shape[1])]
        for name, values_ND in sample.items()
    }
    splits: dict[str, Any] = {}
    binned: dict[str, dict[str, list[Counts]]] = {}
    features: dict[str, Any] = {}
    for split in SPLITS:
        tally = tally_split(spec, split, output, edges=edges, time=counts.time)
        if split == "train":
            bins = DriftBins.fit(spec, tally)
            features = _features(spec, tally, bins.top_codes, output)
        splits[split] = tally.report(thinned=split == "train")
        binned[split] = bins.counts(tally)
    report: dict[str, Any] = {
        "dataset": counts.dataset,
        "window": list(spec.train_window) if spec.train_window else None,
        "rows_in": counts.rows_in,
        "rows_out": sum(counts.rows.values()),
        "rows_dropped": sum(counts.dropped.values()),
        "rows_quarantined": sum(counts.quarantined.values()),
        "dropped": dict(counts.dropped),
        "quarantine": dict(counts.quarantined),
        "events": {name: dict(log) for name, log in counts.events.items()},
        "growth": dict(counts.growth) if counts.growth else None,
        "splits": splits,
        "tasks": {
            task.name: {"kind": task.kind, "space": task.space, "keep_rate": task.keep_rate}
            for task in spec.tasks
        },
        "features": features,
        "drift": _drift(spec, splits, binned),
        "vocabularies": _vocabularies(spec, output),
    }
    report["drift"]["moved"] = _moved(report["drift"], features, binned)
    report["warnings"] = warnings(report)
    write_json(output / "report.json", report)
    write_text(output / "report.html", page(report))
    return report


def _features(
    spec: FeatureSpec, train: Tally, tops: Mapping[str, tuple[int, ...]], output: Path
) -> dict[str, Any]:
    """Return, by feature, what it is and which values train has most often."""
    names = {kind: name for name, kind in KINDS.items()}
    words = _words(spec, tops, output)
    found = {}
    for feature in spec.features:
        kind, table = names[type(feature)], _table(spec, feature)
        entry: dict[str, Any] = {"kind": kind, "columns": list(feature.columns)}
        if table is not None:
            hashed = kind == "categorical" and table.vocabulary is None
            counts = train.codes[feature.name]
            entry |= {
                "kind": "hashed" if hashed else kind,
                "table": table.name,
                "frequent": [
                    {
                        "value": words[feature.name, code],
                        "share": share(int(counts.histogram[code]), counts.values),
                    }
                    for code in tops[feature.name]
                ],
            }
        found[feature.name] = entry | {"constant": train.is_constant(feature.name)}
    return found


def _table(spec: FeatureSpec, feature: Feature) -> Table | None:
    name = getattr(feature, "table", None)
    return None if name is None else spec.table(name)


def _words(
    spec: FeatureSpec, tops: Mapping[str, tuple[int, ...]], output: Path
) -> dict[tuple[str, int], str]:
    """Return what each of the most frequent codes of a feature stands for."""
    wanted: dict[str, set[int]] = {}
    for feature in spec.code_features:
        wanted.setdefault(feature.table, set()).update(tops[feature.name])
    listed: dict[str, dict[int, Any]] = {}
    for table in spec.tables:
        if table.vocabulary is not None and wanted.get(table.name):
            rows = pl.scan_parquet(output / table.vocabulary).select("code", "value")
            mine = rows.filter(pl.col("code").is_in(sorted(wanted[table.name])))
            listed[table.name] = dict(collect(mine).iter_rows())
    words = {}
    for feature in spec.code_features:
        for code in tops[feature.name]:
            if isinstance(feature, Bucketized):
                word = _interval(feature.edges, code - FIRST_OOV)
            elif feature.table in listed:
                word = str(listed[feature.table][code])
            else:
                word = f"bucket {code - FIRST_OOV}"
            words[feature.name, code] = word
    return words


def _interval(edges: tuple[float, ...], place: int) -> str:
    """Return a right-closed interval as text.

    >>> _interval((1.0, 5.5), 0), _interval((1.0, 5.5), 1), _interval((1.0, 5.5), 2)
    ('≤ 1', '1 to 5.5', '> 5.5')
    """
    if place == 0:
        return f"≤ {edges[0]:g}"
    if place >= len(edges):
        return f"> {edges[-1]:g}"
    return f"{edges[place - 1]:g} to {edges[place]:g}"


def _drift(
    spec: FeatureSpec,
    splits: Mapping[str, Any],
    binned: Mapping[str, Mapping[str, list[Counts]]],
) -> dict[str, Any]:
    others = [split for split in SPLITS if split != "train"]
    large = {split for split in SPLITS if splits[split]["rows"] >= JUDGED_FROM_ROWS}
    return {
        "warn": WARN,
        "alarm": ALARM,
        "judged_from_rows": JUDGED_FROM_ROWS,
        "judged": [split for split in others if {"train", split} <= large],
        "psi": {
            split: {
                feature.name: drift_of(binned["train"][feature.name], binned[split][feature.name])
                for feature in spec.features
            }
            for split in others
        },
    }


def _moved(
    drift: Mapping[str, Any],
    features: Mapping[str, Any],
    binned: Mapping[str, Mapping[str, list[Counts]]],
) -> list[dict[str, Any]]:
    """Return the features that moved most and the bins that make it up; a vector has none."""
    largest = {
        name: max((drift["psi"][split][name] or 0.0 for split in drift["judged"]), default=0.0)
        for name in features
        if len(binned["train"][name]) == 1
    }
    names = sorted((n for n in largest if largest[n] >= _MOVED), key=lambda n: -largest[n])
    moved = []
    for name in names[:_MOST_MOVED]:
        frequent = [value["value"] for value in features[name].get("frequent", ())]
        num_bins = len(binned["train"][name][0])
        words = [*frequent, "any other", "missing", "unseen"]
        if "table" not in features[name]:
            words = [*(f"bin {n} of {num_bins - 1}" for n in range(1, num_bins)), "missing"]
        counts = {split: binned[split][name][0] for split in binned}
        parts = [psi_parts(counts["train"], counts[split]) for split in drift["judged"]]
        order = np.argsort(-np.max(parts, axis=0), kind="stable")[:_MOST_BINS]
        shares = {
            split: [share(int(count), int(mine.sum())) for count in mine]
            for split, mine in counts.items()
        }
        bins = [{"value": words[n], **{split: shares[split][n] for split in shares}} for n in order]
        moved.append({"feature": name, "psi": largest[name], "bins": bins})
    return moved


def _vocabularies(spec: FeatureSpec, output: Path) -> list[dict[str, Any]]:
    """Return the tables of codes, the largest first, and what they cost at width 16."""
    found = []
    for table in spec.tables:
        entry: dict[str, Any] = {
            "table": table.name,
            "features": [f.name for f in spec.code_features if f.table == table.name],
            "codes": table.num_codes,
            "unseen_codes": table.num_oov,
            "bytes_at_width_16": table.num_codes * WIDTH * _BYTES,
        }
        if table.vocabulary is not None:
            count = pl.col("count")
            rows = pl.scan_parquet(output / table.vocabulary)
            rare_ones = (count < _RARE).sum().alias("rare")
            values, rare = collect(rows.select(pl.len().alias("n"), rare_ones)).row(0)
            entry |= {"values": values, "rare_values": rare}
        found.append(entry)
    return sorted(found, key=lambda entry: (-entry["codes"], entry["table"]))
