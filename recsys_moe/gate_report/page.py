"""The gates of a run as one HTML page that needs nothing else; every word from `gates.json`."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from recsys_moe.gate_report.page_segments import segment_parts, serves
from recsys_moe.gate_report.page_style import STYLE
from recsys_moe.gate_report.page_tables import ablation_table, glance, weight_table
from recsys_moe.gate_report.pictures import legend, lines


def page(report: Mapping[str, Any]) -> str:
    """Return the page: what stands out, then each layer's weights, effects, columns, history."""
    title = f"Gates of {report['run']}"
    body = "\n".join(
        [*_head(title, report), *_found(report), *_glance(report)]
        + [part for layer in report["layers"] for part in _layer(report, layer)]
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body><main>{body}\n"
        f"</main></body></html>\n"
    )


def _head(title: str, report: Mapping[str, Any]) -> Iterator[str]:
    count = sum(len(layer["anomalies"]) for layer in report["layers"])
    verdict = (
        f"{count} anomal{'y' if count == 1 else 'ies'} to look at."
        if count
        else ("No anomaly: no expert is dead, shunned or taken over.")
    )
    layers = report["layers"]
    facts = {
        "dataset, split": f"{report['dataset']}, {report['split']}",
        "rows": f"{report['rows']:,}",
        "layers": ", ".join(layer["name"] for layer in layers),
        "experts": " + ".join(str(len(layer["experts"])) for layer in layers),
        "gates": ", ".join(dict.fromkeys(gate for layer in layers for gate in layer["gates"])),
        "experts a row uses": " + ".join(
            f"{layer['health']['active_per_row']:.3g}" for layer in layers
        ),
    }
    yield f'<header><h1>{escape(title)}</h1><p class="verdict">{verdict}</p><dl class="facts">'
    yield from (
        f"<div><dt>{word}</dt><dd>{escape(fact)}</dd></div>" for word, fact in facts.items()
    )
    yield "</dl></header>"


def _found(report: Mapping[str, Any]) -> Iterator[str]:
    found = [
        f"{escape(anomaly['message'])}."
        for layer in report["layers"]
        for anomaly in layer["anomalies"]
    ]
    if report["depends_on_batch"]:
        found.append(
            f"<b>{', '.join(report['depends_on_batch'])}</b> decides by batch: these numbers are "
            "those of batches of the split in its own order, and a row alone may differ."
        )
    if found:
        items = "".join(f"<li>{entry}</li>" for entry in found)
        yield f'<section><h2>What to look at</h2><ul class="found">{items}</ul></section>'


def _glance(report: Mapping[str, Any]) -> Iterator[str]:
    yield "<section><h2>At a glance</h2>"
    yield glance(report)
    yield (
        '<p class="hint">A weight is not an effect: an expert may weigh much and say little, or '
        "weigh little where it counts. What a gate gives stands beside what becomes of the metrics "
        "without the expert.</p></section>"
    )


def _layer(report: Mapping[str, Any], layer: Mapping[str, Any]) -> Iterator[str]:
    health = layer["health"]
    yield f"<section><h2>Layer: {escape(layer['name'])}</h2>"
    yield (
        f"<p>As if there were <b>{health['effective_experts']:.2f}</b> evenly used experts of "
        f"{len(layer['experts'])}; the busiest gets {1 + health['max_vio']:.2f} times its fair "
        f"load (MaxVio {health['max_vio']:.2f}); {len(health['dead'])} dead; gates' entropy "
        f"{health['gate_entropy']:.2f} of 1; a row uses {health['active_per_row']:.3g} experts.</p>"
    )
    yield "<h3>How much each gate gives each expert</h3>"
    yield weight_table(layer)
    yield from _ablation(report, layer)
    yield "<h3>What each expert serves</h3>"
    yield (
        '<p class="hint">Of all scalar input columns and those asked for: the columns that explain '
        "most of an expert's weight (&eta;&sup2;, the share of its variance that lies between the "
        "column's segments), and the segments in which the weight exceeds its mean most. Columns "
        "that go together explain the same variance.</p>"
    )
    yield serves(layer)
    for column in dict.fromkeys(report["asked"]):
        yield from segment_parts(report, layer, column)
    yield from _history(layer)
    yield "</section>"


def _ablation(report: Mapping[str, Any], layer: Mapping[str, Any]) -> Iterator[str]:
    ablation = report["ablation"]
    yield "<h3>What becomes of the metrics without each expert</h3>"
    if ablation is None or layer["name"] not in ablation["layers"]:
        why = (
            "ablation_rows=0"
            if not report["ablation_rows"]
            else "its router decides for whole batches"
        )
        yield f'<p class="hint">Not measured: {why}.</p>'
        return
    yield (
        f'<p class="hint">{ablation["rows"]:,} rows predicted again with the expert\'s weight at 0 '
        "and the others of each gate scaled up to the same sum; nothing is trained again. Red: "
        "the metric gets worse. Experts that can stand in for each other show small effects one by "
        "one, so effects do not add up.</p>"
    )
    yield ablation_table(report, layer)


def _history(layer: Mapping[str, Any]) -> Iterator[str]:
    past = layer.get("history")
    if not past:
        return
    yield "<h3>Over training</h3>" + legend(layer["experts"]) + '<div class="grid">'
    for gate, rows in past["gates"].items():
        visible = layer["visible"][layer["gates"].index(gate)]
        series = [
            (e, name, [row[e] for row in rows])
            for e, name in enumerate(layer["experts"])
            if visible[e]
        ]
        title = f"{gate}: share of the gate's weight by step"
        yield (
            f"<figure><figcaption>{escape(title)}</figcaption>"
            f"{lines(title, past['step'], series)}</figure>"
        )
    yield "</div>"
