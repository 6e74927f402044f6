"""How the gates page looks: calm, dark on white, and the same on paper."""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f8fa; color: #1b1f24;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0; }
h2 { font-size: 21px; margin: 0 0 8px; }
h3 { font-size: 16px; margin: 26px 0 4px; }
p { margin: 0 0 8px; max-width: 100ch; }
p.hint { color: #57606a; font-size: 13.5px; }
small { color: #57606a; }
header { margin-bottom: 18px; }
.verdict { font-size: 18px; margin: 4px 0 14px; color: #424a53; }
.facts { display: flex; flex-wrap: wrap; gap: 10px; margin: 0; }
.facts div { background: #fff; border: 1px solid #d0d7de; border-radius: 8px; padding: 8px 14px; }
.facts dt { font-size: 12px; color: #57606a; }
.facts dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
section { background: #fff; border: 1px solid #d0d7de; border-radius: 10px;
  padding: 18px 20px; margin-bottom: 18px; overflow-x: auto; }
ul.found { list-style: none; margin: 0; padding: 0; }
ul.found li { padding: 6px 12px; margin-bottom: 6px; border-left: 5px solid #9a6700;
  border-radius: 4px; background: #fff8e1; }
table { border-collapse: collapse; margin: 6px 0 12px; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #57606a; font-size: 13px; padding-bottom: 4px; }
th, td { padding: 3px 9px; border-bottom: 1px solid #e4e8ec; text-align: left;
  vertical-align: middle; font-size: 13.5px; }
thead th { font-size: 12.5px; color: #424a53; vertical-align: bottom; }
thead tr:last-child th { border-bottom: 2px solid #afb8c1; }
th[scope=colgroup] { border-bottom: 1px solid #afb8c1; }
tbody th { font-weight: 600; white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.b { white-space: nowrap; }
td.none { text-align: center; }
td.first, th.first { border-left: 1px solid #afb8c1; }
td.none { color: #8c959f; }
tr.sum td, tr.sum th { border-top: 2px solid #afb8c1; font-weight: 600; }
table.heat td.n { min-width: 46px; padding: 3px 5px; border: 1px solid #fff; }
table.heat tbody th { font-weight: 400; max-width: 170px; overflow: hidden;
  text-overflow: ellipsis; }
.serves td { vertical-align: top; }
.serves div { margin-bottom: 3px; line-height: 1.35; }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px; }
svg.bar, svg.spread { vertical-align: middle; }
svg.bar { margin-right: 5px; }
svg text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #424a53; }
.grid { display: flex; flex-wrap: wrap; gap: 4px 34px; align-items: flex-start; }
figure { margin: 0; flex: 1 1 420px; max-width: 620px; }
figcaption { font-weight: 600; margin-bottom: 2px; }
svg.chart { width: 100%; height: auto; }
.legend { max-width: none; }
.legend span { margin-right: 18px; white-space: nowrap; font-size: 13px; }
.legend svg { vertical-align: middle; }
@media print {
  body { background: #fff; font-size: 10.5px; }
  main { max-width: none; padding: 0; }
  section { border: 0; padding: 0; overflow: visible; }
  th, td, thead th { font-size: 8.5px; padding: 2px 4px; }
  tr, figure, li { break-inside: avoid; }
  h2, h3, caption, .legend { break-after: avoid; }
  td, li, svg, .dot { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
