"""The gates page's tables of a whole layer: at a glance, weights, effects."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from recsys_moe.gate_report.pictures import bar, colour, effect, heat, spread

WORDS = {"auc": "AUC", "log_loss": "log loss", "r2": "R²", "loss": "loss"}
NONE = '<td class="n none">·</td>'


def glance(report: Mapping[str, Any]) -> str:
    """Return a line a gate: where its weight goes, what it follows, which expert it would miss."""
    head = ["layer", "gate", "gives most to", "as if of", "follows most", "would miss most"]
    rows = []
    for layer in report["layers"]:
        for gate in layer["gates"]:
            weights = layer["gate_weights"][gate]
            e = max(range(len(layer["experts"])), key=lambda e: weights["mean"][e])
            rows.append(
                [
                    escape(layer["name"]),
                    f"<b>{escape(gate)}</b>",
                    f"{expert_name(layer, e)} ({weights['mean'][e]:.1%})",
                    f"{weights['effective_experts']:.2f} experts",
                    _follows(layer, gate),
                    _misses(report, layer, gate),
                ]
            )
    return table("", head, rows)


def _follows(layer: Mapping[str, Any], gate: str) -> str:
    best = [
        (columns[0]["eta_squared"], columns[0]["column"], e)
        for e, columns in enumerate(layer["serves"][gate])
        if columns
    ]
    if not best:
        return "nothing"
    share, column, e = max(best)
    return f"{escape(column)} ({share:.0%} of the weight of {expert_name(layer, e)})"


def _misses(report: Mapping[str, Any], layer: Mapping[str, Any], gate: str) -> str:
    runs = (report["ablation"] or {"layers": {}})["layers"].get(layer["name"])
    metrics = (report["ablation"] or {"metrics": {}})["metrics"].get(gate)
    if not runs or not metrics:
        return "n/a"
    name = "log_loss" if "log_loss" in metrics else "loss"
    e = max(range(len(runs)), key=lambda e: runs[e]["outputs"][gate][name] or 0.0)
    change = runs[e]["outputs"][gate][name] or 0.0
    rank = "auc" if "auc" in metrics else "r2"
    other = runs[e]["outputs"][gate][rank]
    if change <= 0:
        return "none"
    beside = "" if other is None else f", {WORDS[rank]} {other:+.4f}"
    return f"{expert_name(layer, e)} ({WORDS[name]} {change:+.4f}{beside})"


def weight_table(layer: Mapping[str, Any]) -> str:
    """Return a row an expert, and for each gate mean and spread of its weight."""
    gates, weights = layer["gates"], layer["gate_weights"]
    sparse = {gate: min(_seen(layer, gate, "used"), default=1) < 0.9999 for gate in gates}
    head = ['<tr><th scope="col" rowspan="2">expert</th>']
    second = ["<tr>"]
    for gate in gates:
        words = ["mean", "± std", "spread, 0 to " + f"{weights[gate]['top']:g}", "largest in"]
        words += ["used in"] if sparse[gate] else []
        head.append(
            f'<th scope="colgroup" class="first" colspan="{len(words)}">{escape(gate)}</th>'
        )
        second += [
            f'<th scope="col" class="{"n first" if n == 0 else "n"}">{word}</th>'
            for n, word in enumerate(words)
        ]
    head.append('<th scope="colgroup" class="first" colspan="2">all gates</th></tr>')
    second += '<th scope="col" class="n first">load</th><th scope="col">of fair</th></tr>'
    body = [
        f'<tr><th scope="row">{expert_name(layer, e)}</th>'
        + "".join(_weight_cells(layer, gate, e, sparse[gate]) for gate in gates)
        + _load_cells(layer["health"], e)
        + "</tr>"
        for e in range(len(layer["experts"]))
    ]
    sums = "".join(
        f'<td class="n first">{sum(weights[gate]["mean"]):.1%}</td>'
        f'<td colspan="{3 + sparse[gate]}"></td>'
        for gate in gates
    )
    body.append(
        f'<tr class="sum"><th scope="row">sum</th>{sums}'
        '<td class="n first">100.0%</td><td></td></tr>'
    )
    partial = any(abs(sum(weights[gate]["mean"]) - 1) > 0.005 for gate in gates)
    why = " A sum other than 100 %: the router does not scale a row's weights to one."
    return (
        "<table><caption>Spread: histogram of the rows' weights (heights by square root); under it "
        "the 50 % quantile as a dot on the line from the 10 to the 90 % quantile. Largest in: rows "
        f"in which no other expert weighs more.{why * partial}</caption>"
        f"<thead>{''.join(head)}{''.join(second)}</thead><tbody>{''.join(body)}</tbody></table>"
    )


def _weight_cells(layer: Mapping[str, Any], gate: str, e: int, sparse: bool) -> str:
    weights = layer["gate_weights"][gate]
    if not layer["visible"][layer["gates"].index(gate)][e]:
        return f'<td class="n first none" colspan="{4 + sparse}">not seen</td>'
    most, top = max(weights["mean"]) or 1.0, weights["top"]
    low, middle, high = (weights[name][e] / top for name in ("p10", "p50", "p90"))
    cells = (
        f'<td class="n first"{heat(0.8 * weights["mean"][e] / most)}>{weights["mean"][e]:.1%}</td>'
        f'<td class="n">{weights["std"][e]:.3f}</td>'
        f"<td>{spread(weights['histogram'][e], low, middle, high, colour(e))}</td>"
        f'<td class="b">{bar(weights["largest"][e], colour(e))}{weights["largest"][e]:.1%}</td>'
    )
    return cells + (f'<td class="n">{weights["used"][e]:.1%}</td>' if sparse else "")


def _load_cells(health: Mapping[str, Any], e: int) -> str:
    load, fair = health["load"][e], health["fair_load"][e]
    ratio = load / fair if fair else 0.0
    word = " <b>dead</b>" if e in health["dead"] else ""
    return (
        f'<td class="n first">{load:.1%}</td>'
        f'<td class="b">{bar(ratio / 2, colour(e))}&times;{ratio:.2f}{word}</td>'
    )


def ablation_table(report: Mapping[str, Any], layer: Mapping[str, Any]) -> str:
    """Return a row an expert: its mean weight in each gate, and each metric's change without it."""
    ablation, gates = report["ablation"], layer["gates"]
    runs, whole = ablation["layers"][layer["name"]], ablation["metrics"]
    pairs = [(output, name) for output, metrics in whole.items() for name in _shown(metrics)]
    most = {
        (output, name): max((abs(run["outputs"][output][name] or 0.0) for run in runs), default=0)
        for output, name in pairs
    }
    head = '<tr><th scope="col" rowspan="2">without</th>'
    head += f'<th scope="colgroup" class="first" colspan="{len(gates)}">mean weight in gate</th>'
    head += "".join(
        f'<th scope="colgroup" class="first" colspan="{len(_shown(metrics))}">{escape(output)}</th>'
        for output, metrics in whole.items()
    )
    second = "".join(_first(n, escape(gate)) for n, gate in enumerate(gates)) + "".join(
        _first(n, f"{WORDS[name]}<br><small>{_number(metrics[name])}</small>")
        for metrics in whole.values()
        for n, name in enumerate(_shown(metrics))
    )
    body = []
    for e, run in enumerate(runs):
        cells = "".join(_mean_cell(layer, gate, e, n) for n, gate in enumerate(gates))
        for output, metrics in whole.items():
            for n, name in enumerate(_shown(metrics)):
                change = run["outputs"][output][name]
                cells += change_cell(change, most[output, name], name, first=n == 0)
        body.append(f'<tr><th scope="row">{expert_name(layer, e)}</th>{cells}</tr>')
    return (
        f"<table><thead>{head}</tr><tr>{second}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def change_cell(change: float | None, most: float, metric: str, *, first: bool = False) -> str:
    """Return a cell for a metric's change, red where it got worse."""
    kind = "n first" if first else "n"
    if change is None:
        return f'<td class="{kind} none">n/a</td>'
    worse = -change if metric in ("auc", "r2") else change
    return f'<td class="{kind}"{effect(worse / most if most else 0.0)}>{_signed(change)}</td>'


def _signed(change: float) -> str:
    if change == 0:
        return "0"
    return f"{change:+.5f}" if abs(change) >= 5e-6 else f"{change:+.0e}"


def _mean_cell(layer: Mapping[str, Any], gate: str, e: int, n: int) -> str:
    kind = "n first" if n == 0 else "n"
    if not layer["visible"][layer["gates"].index(gate)][e]:
        return f'<td class="{kind} none">·</td>'
    means = layer["gate_weights"][gate]["mean"]
    return f'<td class="{kind}"{heat(0.8 * means[e] / (max(means) or 1.0))}>{means[e]:.1%}</td>'


def _shown(metrics: Mapping[str, Any]) -> list[str]:
    return [name for name in WORDS if name in metrics]


def _first(n: int, text: str) -> str:
    return f'<th scope="col" class="{"n first" if n == 0 else "n"}">{text}</th>'


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.5f}"


def _seen(layer: Mapping[str, Any], gate: str, name: str) -> list[float]:
    """Return one kind of a gate's numbers, for the experts that it sees."""
    visible = layer["visible"][layer["gates"].index(gate)]
    values = layer["gate_weights"][gate][name]
    return [value for value, seen in zip(values, visible, strict=True) if seen]


def expert_name(layer: Mapping[str, Any], e: int) -> str:
    """Return an expert's colour, number and name."""
    return (
        f'<span class="dot" style="background:{colour(e)}"></span>{e} {escape(layer["experts"][e])}'
    )


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already; the first of a row names it."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    said = f"<caption>{caption}</caption>" if caption else ""
    return f"<table>{said}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
