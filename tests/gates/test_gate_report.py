"""The report of a run through the command: its files, what they say, what is refused."""

import json
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recsys_moe import evaluate
from recsys_moe.checkpoint import load_model
from recsys_moe.datamodule import Split
from recsys_moe.files import finish, write_json
from recsys_moe.predict import predict_split
from recsys_moe.predictions import evaluate_outputs

PLE = {
    "_target_": "recsys_moe.models.ple",
    "num_levels": 2,
    "num_task_experts": 2,
    "num_shared_experts": 1,
}
SOFT_MOE = {"_target_": "recsys_moe.moe.router_soft_moe.SoftMoERouter", "_partial_": True}
SOFT_MOE |= {"slots_per_expert": 2}
EVIL = "<img src=x onerror=y()>"
VOID = ("meta", "rect", "line", "circle", "polyline", "br")


class Page(HTMLParser):
    """The tags and the text of a page, whose tags all close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += "" if "style" in self.open else data


@pytest.fixture(scope="module")
def features(make_features: Callable[..., Path]) -> Path:
    folder = make_features(rows=600)
    path = folder / "prepared" / "test" / "part-00000.parquet"
    pl.read_parquet(path).with_columns(note=pl.lit(EVIL)).write_parquet(path)
    return folder


@pytest.fixture(scope="module")
def run(features: Path, save_run: Callable[..., Path]) -> Path:
    """Return a run of two levels whose second task's own first expert is dead, reported."""

    def learn(model: torch.nn.Module) -> None:
        gate = model.mixture.levels[0].task_gates[1]  # type: ignore[union-attr, index]
        gate.linear.bias.data[0] = -50.0  # type: ignore[union-attr]
        gate = model.mixture.levels[0].shared_gate  # type: ignore[union-attr, index]
        gate.linear.bias.data[2] = -50.0  # type: ignore[union-attr]

    folder = save_run(features, PLE, learn)
    shares = {f"share/level 1/click/{e}": [0.2, 0.3] for e in range(5)}
    pl.DataFrame({"step": [10, 20], **shares}).write_csv(folder / "gates.csv")
    command(folder, features, "gates=true", "segments=[color,tags,note,click]")
    return folder


def command(run: Path, features: Path, *arguments: str) -> None:
    sys.argv = ["recsys-moe-evaluate", f"run={run}", f"features={features}", *arguments]
    evaluate.main()


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    return line


@pytest.fixture(scope="module")
def report(run: Path) -> dict[str, Any]:
    return json.loads((run / "gates.json").read_text())


def test_every_gate_of_every_layer_gives_all_its_weight(report: dict[str, Any]) -> None:
    gates = {layer["name"]: layer["gates"] for layer in report["layers"]}

    assert gates == {
        "level 0": ["click", "conversion", "shared"],
        "level 1": ["click", "conversion"],
    }
    for layer in report["layers"]:
        for gate, visible in zip(layer["gates"], layer["visible"], strict=True):
            mean = layer["gate_weights"][gate]["mean"]
            assert sum(mean) == pytest.approx(1, abs=1e-5)
            assert [value > 0 for value in mean][:2] == visible[:2]
            used = layer["gate_weights"][gate]["used"]
            assert used == [float(seen) for seen in visible]
            for column in layer["columns"].values():
                for means in column["gates"][gate]["mean"]:
                    assert sum(means) == pytest.approx(1, abs=1e-5)


def test_the_segments_are_those_asked_for_and_all_scalar_inputs(report: dict[str, Any]) -> None:
    columns = report["layers"][0]["columns"]

    assert list(columns) == ["color", "tags", "note", "click", "price"]
    assert all(sum(column["rows"]) == report["rows"] == 300 for column in columns.values())
    assert len(columns["price"]["segments"]) == 10
    assert columns["note"]["segments"] == [EVIL]


def test_what_an_expert_serves_is_listed_strongest_first(report: dict[str, Any]) -> None:
    for layer in report["layers"]:
        for gate, experts in layer["serves"].items():
            for expert, columns in enumerate(experts):
                overall = layer["gate_weights"][gate]["mean"][expert]
                shares = [column["eta_squared"] for column in columns]
                assert shares == sorted(shares, reverse=True)
                for column in columns:
                    lifts = [segment["lift"] for segment in column["segments"]]
                    assert lifts == sorted(lifts, reverse=True)
                    means = [segment["mean"] / overall for segment in column["segments"]]
                    assert lifts == pytest.approx(means, rel=1e-5)
                    assert all(segment["rows"] >= 30 for segment in column["segments"])
    assert len(report["layers"][0]["serves"]["click"][0][0]["segments"]) > 1


def test_the_ablation_is_a_prediction_without_the_expert(
    run: Path, features: Path, report: dict[str, Any]
) -> None:
    model, spec = load_model(run)
    data = Split(features, "test", spec)
    color = pl.read_parquet(features / "prepared" / "test" / "*.parquet")["color"].to_numpy()

    def measured(ablated: tuple[str, int] | None, rows: Any = slice(None)) -> dict[str, Any]:
        model.mixture.ablated = ablated  # type: ignore[union-attr]
        parts = predict_split(model, data, 100)
        return evaluate_outputs(spec, *({k: v[rows] for k, v in p.items()} for p in parts))

    whole = measured(None)
    blue, whole_blue = color == "blue", measured(None, color == "blue")
    for layer in report["layers"]:
        for expert, found in enumerate(report["ablation"]["layers"][layer["name"]]):
            without = measured((layer["name"], expert))
            for output, changes in found["outputs"].items():
                assert set(changes) == {"auc", "log_loss"}
                for name, change in changes.items():
                    expected = without[output][name] - whole[output][name]
                    assert change == pytest.approx(expected, abs=1e-6)
            part = measured((layer["name"], expert), blue)["click"]["log_loss"]
            assert found["segments"]["color"]["blue"]["click"]["loss"] == pytest.approx(
                part - whole_blue["click"]["log_loss"], abs=1e-6
            )
    assert any(
        abs(found["outputs"]["click"]["log_loss"]) > 1e-6
        for found in report["ablation"]["layers"]["level 1"]
    )


def test_a_dead_expert_is_named_and_worth_nothing(report: dict[str, Any]) -> None:
    first = report["layers"][0]

    assert 2 in first["health"]["dead"]
    assert [2] in [a["experts"] for a in first["anomalies"] if a["name"] == "dead expert"]
    changes = report["ablation"]["layers"]["level 0"][2]["outputs"].values()
    assert np.allclose([value for change in changes for value in change.values()], 0, atol=1e-6)


def test_the_page_needs_nothing_else_and_shows_it_all(run: Path, report: dict[str, Any]) -> None:
    text = (run / "gates.html").read_text()
    page = Page(text)

    assert "http" not in text
    assert not {tag for tag, _ in page.tags} & {"img", "link", "script", "iframe", "object"}
    assert not any({"src", "href", "onerror"} & attrs.keys() for _, attrs in page.tags)
    assert EVIL in page.text
    for layer in report["layers"]:
        assert f"Layer: {layer['name']}" in page.text
        assert all(anomaly["message"] in page.text for anomaly in layer["anomalies"])
        for number, expert in enumerate(layer["experts"]):  # weights, effects and what it serves
            assert page.text.count(f"{number} {expert}") >= 3 * len(report["layers"])
    assert all(f"By {column}" in page.text for column in report["asked"])
    assert "A weight is not an effect" in page.text


def test_training_s_shares_are_drawn_where_they_were_kept(
    run: Path, report: dict[str, Any]
) -> None:
    assert [layer["history"] for layer in report["layers"]] == [
        None,
        {"step": [10, 20], "gates": {"click": [[0.2] * 5, [0.3] * 5]}},
    ]
    charts = [a for _, a in Page((run / "gates.html").read_text()).tags if "chart" in a.values()]
    assert [chart["aria-label"] for chart in charts] == [
        "click: share of the gate's weight by step"
    ]


def test_the_same_request_reads_back_and_another_writes_anew(run: Path, features: Path) -> None:
    before = (run / "gates.json").stat().st_mtime_ns
    command(run, features, "gates=true", "segments=[color,tags,note,click]")
    assert (run / "gates.json").stat().st_mtime_ns == before

    command(run, features, "gates=true", "segments=color", "ablation_rows=0")
    found = json.loads((run / "gates.json").read_text())
    assert found["asked"] == ["color"]
    assert found["ablation"] is None
    assert "Not measured: ablation_rows=0" in Page((run / "gates.html").read_text()).text


def test_a_router_that_mixes_whole_batches_is_read_but_not_ablated(
    features: Path, save_run: Callable[..., Path]
) -> None:
    model = {"_target_": "recsys_moe.models.mmoe", "num_experts": 3, "router": SOFT_MOE}
    folder = save_run(features, model)
    command(folder, features, "gates=true")
    found = json.loads((folder / "gates.json").read_text())

    assert found["ablation"] is None
    assert found["depends_on_batch"] == ["SoftMoERouter"]
    assert "decides by batch" in Page((folder / "gates.html").read_text()).text


def test_wrong_requests_end_in_one_line(
    run: Path,
    features: Path,
    save_run: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    line = refused(capsys, run, features, "gates=true", "segments=[colour]")
    assert "segments: wanted columns of prepared/test, got 'colour'. Did you mean 'color'?" in line
    line = refused(capsys, run, features, "segments=[color]")
    assert "segments=color: wanted gates=true beside it, got gates=False." in line
    line = refused(capsys, run, features, "gates=true", "ablation_rows=-1")
    assert "ablation_rows: wanted a number of rows" in line
    bottom = save_run(features, {"_target_": "recsys_moe.models.shared_bottom"})
    line = refused(capsys, bottom, features, "gates=true")
    assert "gates=true: wanted a model with gates" in line

    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for name in ("tensors", "feature_spec.json"):
        (fewer / name).symlink_to(features / name)
    (fewer / "prepared" / "test").mkdir(parents=True)
    rows = pl.read_parquet(features / "prepared" / "test" / "*.parquet")
    rows[:-1].write_parquet(fewer / "prepared" / "test" / "a.parquet")
    write_json(fewer / "request.json", {})
    finish(fewer, {"fewer": True})
    line = refused(capsys, run, fewer, "gates=true")
    assert "prepared/test: wanted 300 rows, as its tensors, got 299." in line
