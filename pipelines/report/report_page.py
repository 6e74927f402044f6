"""The features report as one HTML page that needs nothing else; every word from `report.json`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from pipelines.report.report_html import NONE, percent, plain, short, span, table
from pipelines.report.report_style import STYLE
from pipelines.report.report_svg import COLOURS, bar, day_lines, legend, marked_bar, stacked_bar

_SPLITS = ("train", "valid", "test")
_LEVEL_WORDS = {"alarm": "Alarm", "warning": "Warning", "note": "Note"}
_MOST_TABLES, _MOST_VALUES = 30, 5
_OUT_COLOURS = {"dropped": "#57606a", "quarantined": "#a40e26"}


def page(report: Mapping[str, Any]) -> str:
    """Return the page of a report: verdict first, then tables, then how they are made."""
    title = f"Features of {report['dataset']}"
    body = "\n".join(
        [
            *_head(title, report),
            *_warnings(report["warnings"]),
            *_rows(report),
            *_labels(report),
            *_coverage(report),
            *_drift(report),
            *_frequent(report),
            *_vocabularies(report["vocabularies"]),
            *_growth(report["growth"]),
        ]
    )
    data = json.dumps(report, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body><main>{body}\n"
        f'</main><script type="application/json" id="report">{data}</script></body></html>\n'
    )


def _head(title: str, report: Mapping[str, Any]) -> Iterator[str]:
    counts = [
        (sum(warning["level"] == level for warning in report["warnings"]), word)
        for level, word in (("alarm", "alarm"), ("warning", "warning"))
    ]
    found = " and ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in counts if n)
    verdict = f"{found} to look at." if found else "Nothing stands out."
    facts = {"rows in": f"{report['rows_in']:,}"}
    facts |= {split: f"{report['splits'][split]['rows']:,}" for split in _SPLITS}
    facts |= {
        "features": f"{len(report['features']):,}",
        "tasks": ", ".join(report["tasks"]),
        "train window (UTC)": span(report["window"]),
    }
    yield f'<header><h1>{escape(title)}</h1><p class="verdict">{verdict}</p><dl class="facts">'
    yield from (
        f"<div><dt>{word}</dt><dd>{escape(fact)}</dd></div>" for word, fact in facts.items()
    )
    yield "</dl></header>"


def _warnings(warnings: Sequence[Mapping[str, str]]) -> Iterator[str]:
    if warnings:
        yield '<section class="warnings"><h2>What to look at</h2><ul>'
        for warning in warnings:
            level, about = warning["level"], escape(warning["about"])
            yield (
                f'<li class="{level}"><strong>{_LEVEL_WORDS[level]}</strong> '
                f"<b>{about}</b>: {escape(warning['text'])}.</li>"
            )
        yield "</ul></section>"


def _rows(report: Mapping[str, Any]) -> Iterator[str]:
    parts = [(split, report["splits"][split]["rows"], COLOURS[split]) for split in _SPLITS]
    for name, entries in (("dropped", report["dropped"]), ("quarantined", report["quarantine"])):
        parts += [(f"{name}: {why}", n, _OUT_COLOURS[name]) for why, n in entries.items()]
    rows_in = report["rows_in"]
    rows = [[escape(word), f"{n:,}", percent(n / rows_in)] for word, n, _ in parts]
    rows.append(["<b>all rows in</b>", f"<b>{rows_in:,}</b>", "100%"])
    yield "<section><h2>Where the rows went</h2>"
    yield stacked_bar(parts)
    yield table("Every row that came is in one line.", ["", "rows", "share"], rows)
    logs = {name: log for name, log in report["events"].items() if "rows_in" in log}
    if logs:
        head = ["log", "events in", "impressions reached", "in quarantine", "of these"]
        rows = [[escape(name), *_log(log)] for name, log in logs.items()]
        yield table("Logs of events, joined to impressions.", head, rows)
    for history, counts in report["events"].get("histories", {}).items():
        if counts["left_out"]:
            yield f"<p><b>{escape(history)}</b> leaves out {counts['left_out']:,} events of users"
            yield " with more in a day than it takes.</p>"
    yield "</section>"


def _log(log: Mapping[str, Any]) -> list[str]:
    words = [f"{count:,} {reason}" for reason, count in log["quarantine"].items()]
    words += [f"{n:,} too late for {task}" for task, n in log.get("late", {}).items() if n]
    words += [f"{n:,} without value for {t}" for t, n in log.get("without_value", {}).items() if n]
    words += [f"{log['repeated']:,} repeated"] if log.get("repeated") else []
    counts = [f"{log[name]:,}" for name in ("rows_in", "impressions", "rows_quarantined")]
    return [*counts, escape("; ".join(words)) or NONE]


def _labels(report: Mapping[str, Any]) -> Iterator[str]:
    rows, charts = [], []
    for name, task in report["tasks"].items():
        series: dict[str, list[tuple[str, float]]] = {}
        word = "rate" if task["kind"] == "binary" else "mean"
        for split in _SPLITS:
            mine = report["splits"][split]["tasks"][name]
            positives = f"{mine['positives']:,}" if "positives" in mine else NONE
            label = f"{escape(name)} · {split}"
            unknown = f"{mine['rows'] - mine['known']:,}"
            rows.append([label, escape(task["space"]), f"{mine['rows']:,}", unknown])
            rows[-1] += [positives, _level(mine)]
            series[split] = [(day["day"], day[word]) for day in mine.get("days", ())]
        shown = {split: points for split, points in series.items() if points}
        if shown:
            title = f"{name}: {'share of positives' if word == 'rate' else 'mean'} by day"
            chart = day_lines(title, shown, word == "rate")
            charts.append(f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>")
    head = ["task · split", "space", "rows in space", "unknown", "positives", "rate or mean ± std"]
    yield "<section><h2>Labels</h2>"
    yield table(
        "Each task among the rows of its own space; unknown labels count nowhere.", head, rows
    )
    if charts:
        yield f'{legend(_SPLITS)}<div class="charts">{"".join(charts)}</div>'
    yield "</section>"


def _level(task: Mapping[str, Any]) -> str:
    """Return how large the labels of a task are, and had none been thinned or weighted."""
    if "mean" in task:
        return NONE if task["mean"] is None else f"<b>{task['mean']:.4g}</b> ± {task['std']:.4g}"
    notes = [
        f" <small>{percent(task[name])} {word}</small>"
        for name, word in (("weighted_rate", "weighted"), ("unsampled_rate", "before sampling"))
        if name in task
    ]
    return f"<b>{percent(task['rate'])}</b>{''.join(notes)}"


def _coverage(report: Mapping[str, Any]) -> Iterator[str]:
    codes = {entry["table"]: entry["codes"] for entry in report["vocabularies"]}
    rows = []
    for name, feature in report["features"].items():
        mine = [report["splits"][split]["features"][name] for split in _SPLITS]
        owner = feature.get("table")
        where = f"{escape(owner)} <small>{codes[owner]:,}</small>" if owner else NONE
        kind = feature["kind"] + (" <em>constant</em>" if feature["constant"] else "")
        rows.append([escape(name), kind, where])
        filled = bar(mine[0]["coverage"] or 0, COLOURS["train"], 48)
        rows[-1] += [f"{filled}<span>{percent(mine[0]['coverage'])}</span>"]
        rows[-1] += [percent(split["coverage"]) for split in mine[1:]]
        rows[-1] += [percent(split["missing_rate"]) for split in mine]
        rows[-1] += [percent(split.get("oov_rate")) for split in mine]
    groups = "".join(
        f'<th scope="colgroup" colspan="3">{word}</th>'
        for word in ("coverage: rows with a value", "missing among values", "unseen among values")
    )
    head = ["feature", "kind", "table, codes", *_SPLITS * 3]
    text = table("By split; n/a where it cannot be.", head, rows)
    groups = f'<thead><tr><td colspan="3"></td>{groups}</tr>'
    yield "<section><h2>Features: what is there</h2>"
    yield text.replace("<thead>", groups, 1).replace("<table>", '<table class="dense">', 1)
    yield "</section>"


def _drift(report: Mapping[str, Any]) -> Iterator[str]:
    drift = report["drift"]
    worst = {
        name: max(drift["psi"][split][name] or 0 for split in drift["psi"])
        for name in report["features"]
    }
    most = max([2 * drift["alarm"], *worst.values()])
    rows = []
    for name in sorted(worst, key=lambda name: -worst[name]):
        row = [escape(name)]
        for split, values in drift["psi"].items():
            value = values[name]
            if value is None:
                row += [NONE, NONE]
                continue
            marks = (drift["warn"], drift["alarm"])
            row += [f"{marked_bar(value, most, marks, COLOURS[split])} {value:.4f}"]
            row += [_verdict(value, drift) if split in drift["judged"] else "not judged"]
        rows.append(row)
    heads = [word for split in drift["psi"] for word in (f"PSI of {split}", "verdict")]
    yield "<section><h2>Drift: how far valid and test lie from train</h2>"
    yield (
        f"<p>Population stability index against train: above {drift['warn']} a feature has moved, "
        f"above {drift['alarm']} it is another. The dashed ticks are these two. A split of fewer "
        f"than {drift['judged_from_rows']:,} rows is not judged: chance alone moves it.</p>"
    )
    yield table("The largest first.", ["feature", *heads], rows)
    if drift["moved"]:
        yield "<h3>What moved most</h3><p>Shares of the values that differ most from train; "
        yield "bin 1 of a number is its lowest in train.</p>"
        yield '<div class="charts">'
        for entry in drift["moved"]:
            top = max(one[split] or 0 for one in entry["bins"] for split in _SPLITS) or 1
            lines = [
                [escape(short(one["value"])), *(_shown(one, split, top) for split in _SPLITS)]
                for one in entry["bins"]
            ]
            caption = f"<b>{escape(entry['feature'])}</b>, PSI {entry['psi']:.3f}"
            yield table(caption, ["value", *_SPLITS], lines)
        yield "</div>"
    yield "</section>"


def _shown(entry: Mapping[str, Any], split: str, top: float) -> str:
    return f"{bar((entry[split] or 0) / top, COLOURS[split], 60)} {percent(entry[split])}"


def _verdict(value: float, drift: Mapping[str, Any]) -> str:
    if value > drift["alarm"]:
        return '<b class="alarm">alarm</b>'
    return '<b class="warning">moved</b>' if value > drift["warn"] else "steady"


def _frequent(report: Mapping[str, Any]) -> Iterator[str]:
    rows = []
    for name, feature in report["features"].items():
        values = feature.get("frequent", ())[:_MOST_VALUES]
        if values:
            words = [
                f"{escape(short(v['value']))} <small>{percent(v['share'])}</small>" for v in values
            ]
            rows.append([escape(name), *words, *[""] * (_MOST_VALUES - len(words))])
    if rows:
        head = ["feature", "most frequent", *(f"no. {n}" for n in range(2, _MOST_VALUES + 1))]
        yield "<section><h2>Most frequent values</h2>"
        yield table("Share of all values in train, missing ones included.", head, rows)
        yield "</section>"


def _vocabularies(tables: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not tables:
        return
    largest = tables[0]["codes"]
    rows = []
    for entry in tables[:_MOST_TABLES]:
        rare = entry["rare_values"] / entry["values"] if entry.get("values") else None
        rows.append(
            [
                escape(entry["table"]),
                escape(short(", ".join(entry["features"]), 60)),
                f"{entry['values']:,}" if "values" in entry else "not listed",
                f"{bar(entry['codes'] / largest, COLOURS['train'])} {entry['codes']:,}",
                f"{entry['bytes_at_width_16'] / 2**20:,.2f}",
                percent(rare),
            ]
        )
    head = ["table", "features", "values", "codes", "MiB at width 16", "values seen under 5 times"]
    total = sum(entry["bytes_at_width_16"] for entry in tables) / 2**20
    more = f" The {_MOST_TABLES} largest." if len(tables) > _MOST_TABLES else ""
    caption = f"{len(tables)} tables, {total:,.1f} MiB of float32 at width 16.{more}"
    yield "<section><h2>Vocabularies</h2>"
    yield table(caption, head, rows)
    yield "</section>"


def _growth(growth: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what a re-fit kept and added: a table for mappings of mappings, a line for the rest."""
    if not growth:
        return
    yield "<section><h2>Growth</h2>"
    for name, value in growth.items():
        word = escape(name.replace("_", " "))
        if isinstance(value, Mapping) and all(isinstance(v, Mapping) for v in value.values()):
            head = list(dict.fromkeys(key for entry in value.values() for key in entry))
            rows = [
                [escape(key), *(plain(entry.get(column)) for column in head)]
                for key, entry in value.items()
            ]
            yield table(word, ["", *(escape(column.replace("_", " ")) for column in head)], rows)
        else:
            yield f"<p><b>{word}</b>: {plain(value)}</p>"
    yield "</section>"
