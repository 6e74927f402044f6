"""How the features report looks: calm, dark on white, and the same on paper."""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f8fa; color: #1b1f24;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0; }
h2 { font-size: 19px; margin: 0 0 10px; }
h3 { font-size: 16px; margin: 20px 0 4px; }
p { margin: 0 0 10px; max-width: 90ch; }
small { color: #57606a; }
header { margin-bottom: 18px; }
.verdict { font-size: 18px; margin: 4px 0 14px; color: #424a53; }
.facts { display: flex; flex-wrap: wrap; gap: 10px; margin: 0; }
.facts div { background: #fff; border: 1px solid #d0d7de; border-radius: 8px; padding: 8px 14px; }
.facts dt { font-size: 12px; color: #57606a; }
.facts dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
section { background: #fff; border: 1px solid #d0d7de; border-radius: 10px;
  padding: 18px 20px; margin-bottom: 18px; overflow-x: auto; }
.warnings ul { list-style: none; margin: 0; padding: 0; }
.warnings li { padding: 6px 12px; margin-bottom: 6px; border-left: 5px solid; border-radius: 4px; }
.warnings strong { display: inline-block; min-width: 78px; }
li.alarm { background: #ffebe9; border-color: #a40e26; }
li.alarm strong, b.alarm { color: #a40e26; }
li.warning { background: #fff8e1; border-color: #9a6700; }
li.warning strong, b.warning { color: #7a4e00; }
li.note { background: #eef4fb; border-color: #57606a; }
table { border-collapse: collapse; width: 100%; margin: 8px 0 14px;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #57606a; font-size: 13px; padding-bottom: 6px; }
th, td { padding: 4px 10px; border-bottom: 1px solid #e4e8ec; text-align: left;
  vertical-align: middle; }
thead th { font-size: 12.5px; color: #424a53; border-bottom: 2px solid #afb8c1; }
tbody th { font-weight: 600; overflow-wrap: anywhere; }
tbody tr:hover { background: #f6f8fa; }
table.dense { font-size: 13px; }
table.dense th, table.dense td { padding: 3px 7px; }
table.dense tbody td:nth-child(n+4), table.dense thead tr:nth-child(2) th:nth-child(n+4) {
  text-align: right; white-space: nowrap; }
table.dense td:nth-child(3n+4), table.dense thead tr:nth-child(2) th:nth-child(3n+4),
table.dense th[scope=colgroup] { border-left: 1px solid #d0d7de; }
em { font-style: normal; font-size: 12px; color: #7a4e00; }
svg text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #424a53; }
svg.wide { width: 100%; height: auto; display: block; margin-bottom: 8px; }
svg.wide text { fill: #fff; font-weight: 600; }
svg.bar { vertical-align: middle; margin-right: 4px; }
svg.bar + span { display: inline-block; min-width: 46px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr));
  gap: 8px 28px; align-items: start; }
.charts table { font-size: 13px; }
.charts td, .charts tbody th { white-space: nowrap; }
.charts caption { font-size: 14px; color: #1b1f24; }
figure { margin: 0; }
figcaption { font-weight: 600; margin-bottom: 4px; }
svg.chart { width: 100%; height: auto; }
.legend span { margin-right: 22px; }
.legend svg { vertical-align: middle; }
@media (max-width: 560px) { .charts { grid-template-columns: 1fr; } }
@media print {
  body { background: #fff; font-size: 10.5px; }
  main { max-width: none; padding: 0; }
  section { border: 0; padding: 0; overflow: visible; }
  .facts div { padding: 3px 8px; }
  table.dense { font-size: 8.5px; }
  table.dense svg.bar { display: none; }
  .charts { grid-template-columns: 1fr 1fr; }
  .charts table { font-size: 9px; }
  .charts svg.bar { display: none; }
  .charts caption, caption { font-size: 10.5px; }
  thead { display: table-header-group; }
  thead th { font-size: inherit; }
  tr, figure, li { break-inside: avoid; }
  h2, h3, caption, .legend { break-after: avoid; }
  .warnings li, svg { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
