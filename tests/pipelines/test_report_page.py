"""The report as a page: whole, alone, safe, and saying what report.json says."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.report.report_page import page
from pipelines.report.report_svg import COLOURS, day_lines

EVIL = '<img src=x onerror="x()">'
VOID = ("meta", "rect", "line", "circle", "path", "polyline")


class Page(HTMLParser):
    """What a page is made of: tags that close, links, the rows of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self.data = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1] += [""] * int(dict(attrs).get("colspan") or 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.data += data
        elif "style" not in self.open:
            self.text += data
            if "td" in self.open or "th" in self.open:
                self.tables[-1][-1][-1] += data


@pytest.fixture
def made(build_features, dataset_of, frame) -> tuple[dict[str, Any], str]:
    train = frame(400, 1, item=pl.lit(EVIL), user=pl.lit("</script><b>"))
    spoilt = pl.when(pl.int_range(pl.len()) < 8).then(2).otherwise("click")
    train = train.with_columns(click=spoilt)
    features = [
        {"kind": "categorical", "name": EVIL, "column": "item"},
        {"kind": "categorical", "columns": ["user"]},
        {"kind": "numeric", "name": "price", "column": "price"},
    ]
    tasks = [{"name": "click", "label": "click"}, {"name": "bought", "label": "bought"}]
    value = dataset_of(features, name="a & b", time="at", tasks=tasks)
    output: Path = build_features(
        value, {"train": train, "test": train.tail(90)}, max_quarantine_share=0.1
    )
    return json.loads((output / "report.json").read_text()), (output / "report.html").read_text()


def test_the_page_needs_nothing_else(made):
    found = Page(made[1])

    assert not found.open
    assert "http" not in made[1].replace("http-equiv", "")
    assert not any({"src", "href", "onerror", "onload"} & attrs.keys() for _, attrs in found.tags)
    assert [attrs for tag, attrs in found.tags if tag == "script"] == [
        {"type": "application/json", "id": "report"}
    ]
    assert not any(tag in ("img", "link", "iframe", "i", "object") for tag, _ in found.tags)


def test_the_page_carries_the_report(made):
    assert json.loads(Page(made[1]).data) == made[0]


def test_names_of_the_data_are_text(made):
    found = Page(made[1])

    assert EVIL in found.text
    assert "</script><b>" in found.text
    assert "Features of a & b" in found.text


def test_every_table_has_headers_and_whole_rows(made):
    found = Page(made[1])
    captions = sum(tag == "caption" for tag, _ in found.tags)

    assert captions == len(found.tables) >= 5
    assert all("scope" in attrs for tag, attrs in found.tags if tag == "th")
    for table in found.tables:
        assert len({len(row) for row in table}) == 1
        assert len(table) >= 2


def test_the_rows_on_the_page_add_up(made):
    report, text = made
    went = Page(text).tables[0][1:]

    counts = [int(row[1].replace(",", "")) for row in went]

    assert report["rows_quarantined"] == 8
    assert sum(counts[:-1]) == counts[-1] == report["rows_in"] == 490
    assert "quarantined: label of click: not 0 or 1" in [row[0] for row in went]


def test_rates_are_drawn_by_day(made):
    charts = [attrs for tag, attrs in Page(made[1]).tags if attrs.get("class") == "chart"]

    assert [chart["aria-label"] for chart in charts] == [
        "click: share of positives by day",
        "bought: share of positives by day",
    ]


@pytest.mark.parametrize("values", [[0.0], [0.5, 0.5], [1e-9, 3e4], [-2.0, 5.0]])
def test_a_chart_keeps_to_its_frame(values: list[float]):
    days = [(f"2026-01-{n + 1:02}", value) for n, value in enumerate(values)]

    svg = day_lines("x", dict.fromkeys(COLOURS, days), percent=False)

    for tag, attrs in Page(svg).tags:
        if tag == "circle":
            assert 0 <= float(attrs["cx"]) <= 640
            assert 0 <= float(attrs["cy"]) <= 195


def test_what_a_refit_kept_is_shown(made):
    growth = {"old_spec": "abc", "tables": {"item": {"kept": 7, "new": 1234}}, "tables_added": []}

    found = Page(
        page({**made[0], "growth": growth, "events": {"histories": {"h": {"left_out": 5}}}})
    )

    assert found.tables[-1] == [["", "kept", "new"], ["item", "7", "1,234"]]
    assert "leaves out 5 events" in found.text


def test_a_regression_has_a_mean_and_thinned_labels_both_rates(made):
    report = json.loads(json.dumps(made[0]))
    report["tasks"]["click"]["kind"] = "regression"
    for split in report["splits"].values():
        split["tasks"]["click"] = {"rows": 9, "known": 8, "mean": 3.25, "std": 0.5}
        split["tasks"]["bought"]["unsampled_rate"] = 0.125

    labels = Page(page(report)).tables[1]

    assert labels[1] == ["click · train", "all", "9", "1", "n/a", "3.25 ± 0.5"]
    assert labels[4][-1].endswith("12.5% before sampling")
