"""The gates page's tables by segment: what each expert serves, and heat maps of a column."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from recsys_moe.gate_report.page_tables import expert_name, table
from recsys_moe.gate_report.pictures import bar, colour, effect, heat

_MOST = 3


def serves(layer: Mapping[str, Any]) -> str:
    """Return a row an expert, and for each gate the columns and segments that draw its weight."""
    rows = [
        [
            expert_name(layer, e),
            *(
                "".join(_served(found[e], e)) or "<small>its weight does not move</small>"
                if layer["visible"][g][e]
                else "<small>not seen</small>"
                for g, found in enumerate(layer["serves"][gate] for gate in layer["gates"])
            ),
        ]
        for e in range(len(layer["experts"]))
    ]
    head = ["expert", *(escape(f"gate {gate}") for gate in layer["gates"])]
    return table("", head, rows).replace("<table>", '<table class="serves">', 1)


def _served(columns: Sequence[Mapping[str, Any]], e: int) -> Iterator[str]:
    for column in columns[:_MOST]:
        segments = "; ".join(
            f"{escape(short(segment['segment']))} &times;{segment['lift']:.2f}"
            for segment in column["segments"]
        )
        yield (
            f"<div>{bar(column['eta_squared'], colour(e), 40)}{column['eta_squared']:.0%} "
            f"<b>{escape(column['column'])}</b> <small>{segments}</small></div>"
        )


def segment_parts(report: Mapping[str, Any], layer: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield the heat maps of one column: each gate's mean weights, each output's losses."""
    column = layer["columns"][name]
    yield f"<h3>By {escape(name)}</h3>"
    yield (
        '<p class="hint">Mean weight in each segment. Explained: how much of a weight\'s variance '
        "lies between segments. Agreement: how far the expert with the largest weight tells the "
        "segment (adjusted Rand index: 1 wholly, 0 as chance would), and joined: where experts "
        "that have most of their rows in the same segment count as one.</p>"
    )
    yield '<div class="grid">'
    yield from (_heat_map(layer, column, gate) for gate in layer["gates"])
    yield "</div>"
    runs = (report["ablation"] or {"layers": {}})["layers"].get(layer["name"])
    if runs:
        yield (
            '<p class="hint">Without the expert: change of each segment\'s log loss (of an amount: '
            "of its squared error), in thousandths; red is worse. Experts that change nothing are "
            "left out.</p>"
        )
        yield '<div class="grid">'
        yield from (
            _loss_map(layer, runs, name, column, output) for output in report["ablation"]["metrics"]
        )
        yield "</div>"


def _heat_map(layer: Mapping[str, Any], column: Mapping[str, Any], gate: str) -> str:
    mine, weights = column["gates"][gate], layer["gate_weights"][gate]
    experts = [e for e, seen in enumerate(layer["visible"][layer["gates"].index(gate)]) if seen]
    most = max((mean[e] for mean in mine["mean"] for e in experts), default=1.0) or 1.0
    rows = [
        _name_cells(segment, rows)
        + "".join(f'<td class="n"{heat(mean[e] / most)}>{mean[e]:.1%}</td>' for e in experts)
        for segment, rows, mean in zip(
            column["segments"], column["rows"], mine["mean"], strict=True
        )
    ]
    total = sum(column["rows"])
    overall = "".join(f'<td class="n">{weights["mean"][e]:.1%}</td>' for e in experts)
    explained = "".join(f'<td class="n">{_share(mine["eta_squared"][e])}</td>' for e in experts)
    caption = f"<b>gate {escape(gate)}</b>: agreement {mine['agreement']:.3f}, "
    caption += f"joined {mine['agreement_joined']:.3f}"
    last = f'<tr class="sum">{_name_cells("all", total)}{overall}</tr>'
    last += f'<tr><th scope="row">explained</th><td></td>{explained}</tr>'
    return _map(caption, layer, experts, rows, last)


def _loss_map(
    layer: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    name: str,
    column: Mapping[str, Any],
    output: str,
) -> str:
    changes = [
        [run["segments"][name].get(segment, {}).get(output, {}).get("loss") for run in runs]
        for segment in column["segments"]
    ]
    moved = [e for e in range(len(runs)) if any(row[e] for row in changes)]
    most = max((abs(row[e] or 0.0) for row in changes for e in moved), default=0.0)
    rows = [
        _name_cells(segment, rows) + "".join(_thousandths(row[e], most) for e in moved)
        for segment, rows, row in zip(column["segments"], column["rows"], changes, strict=True)
    ]
    return _map(f"<b>{escape(output)}</b>", layer, moved, rows, "")


def _thousandths(change: float | None, most: float) -> str:
    if change is None:
        return '<td class="n none">n/a</td>'
    text = f"{1000 * change:+.1f}" if abs(change) >= 5e-5 else "0.0"
    return f'<td class="n"{effect(change / most if most else 0.0)}>{text}</td>'


def _map(
    caption: str, layer: Mapping[str, Any], experts: Sequence[int], rows: Sequence[str], last: str
) -> str:
    heads = "".join(
        f'<th scope="col" class="n" title="{escape(layer["experts"][e])}">'
        f'<span class="dot" style="background:{colour(e)}"></span>{e}</th>'
        for e in experts
    )
    body = "".join(f"<tr>{cells}</tr>" for cells in rows)
    return (
        f'<table class="heat"><caption>{caption}</caption><thead><tr><th scope="col">segment</th>'
        f'<th scope="col" class="n">rows</th>{heads}</tr></thead>'
        f"<tbody>{body}{last}</tbody></table>"
    )


def _name_cells(segment: str, rows: int) -> str:
    return (
        f'<th scope="row" title="{escape(segment)}">{escape(segment) or "(empty)"}</th>'
        f'<td class="n">{rows:,}</td>'
    )


def short(text: str, most: int = 30) -> str:
    """Return the beginning of a text that is too long for its place."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _share(value: float | None) -> str:
    return "·" if value is None else f"{value:.0%}"
