"""The published graphs, run by ONNX Runtime as a service would."""

import json
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from torch import nn

from export.columns import raw_feeds
from export.core import export_core
from export.fuzz import fuzzed_rows
from export.gates import check_graph
from export.graph import open_graph
from export.manifest import Manifest
from export.sample import tensor_from_json, tensor_to_json
from recsys_moe.errors import ArtifactError
from recsys_moe.spec import FeatureSpec


@pytest.fixture(scope="module")
def frame(spec: FeatureSpec, run: Path) -> pl.DataFrame:
    return fuzzed_rows(spec, run, pl.DataFrame(), 512, seed=9)


def test_the_merged_graph_is_the_two_parts_to_the_bit(
    artifact: Path, spec: FeatureSpec, frame: pl.DataFrame
) -> None:
    manifest = Manifest.verify(artifact)
    feeds, outputs = raw_feeds(frame, spec.columns), [*manifest.outputs, *manifest.logits]
    boundary = list(manifest.boundary)
    tensors = open_graph(artifact / "preprocess.onnx").run(boundary, feeds)

    split = open_graph(artifact / "core.onnx").run(
        outputs, dict(zip(boundary, tensors, strict=True))
    )

    whole = open_graph(artifact / "model.onnx").run(outputs, feeds)
    for one, other in zip(whole, split, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_row_alone_scores_as_in_a_batch(
    artifact: Path, spec: FeatureSpec, frame: pl.DataFrame
) -> None:
    session, outputs = open_graph(artifact / "model.onnx"), list(Manifest.load(artifact).outputs)
    together = session.run(outputs, raw_feeds(frame, spec.columns))

    for row in range(0, frame.height, 16):
        alone = session.run(outputs, raw_feeds(frame[row], spec.columns))
        np.testing.assert_allclose(
            np.ravel(alone), [values[row] for values in together], rtol=0, atol=1e-6
        )


def test_a_chain_is_the_product_of_its_factors(
    artifact: Path, spec: FeatureSpec, frame: pl.DataFrame
) -> None:
    names = ["p_click", "p_conversion", "p_click_and_conversion", "logit_click"]
    click, conversion, both, logit = open_graph(artifact / "model.onnx").run(
        names, raw_feeds(frame, spec.columns)
    )

    np.testing.assert_array_equal(both, click * conversion)
    assert (both <= click).all()
    np.testing.assert_allclose(click, 1 / (1 + np.exp(-logit.astype(np.float64))), atol=1e-6)


def test_the_sample_request_reproduces_the_sample_response(artifact: Path) -> None:
    def strict(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    def read(name: str) -> dict:
        return json.loads((artifact / "sample" / name).read_text(), parse_constant=strict)

    request, response = read("request.json"), read("response.json")
    session = open_graph(artifact / "model.onnx")
    feeds = {tensor["name"]: tensor_from_json(tensor) for tensor in request["inputs"]}
    assert set(feeds) == {tensor.name for tensor in session.get_inputs()}
    outputs = [tensor["name"] for tensor in response["outputs"]]
    assert outputs == list(Manifest.load(artifact).outputs)

    for tensor, value in zip(response["outputs"], session.run(outputs, feeds), strict=True):
        np.testing.assert_array_equal(value, tensor_from_json(tensor))


def test_the_sample_parquet_reproduces_what_is_expected(artifact: Path, spec: FeatureSpec) -> None:
    rows = pl.read_parquet(artifact / "sample" / "input.parquet")
    expected = pl.read_parquet(artifact / "sample" / "expected.parquet")
    outputs = list(Manifest.load(artifact).outputs)

    values = open_graph(artifact / "model.onnx").run(outputs, raw_feeds(rows, spec.columns))

    assert rows.height == expected.height == 16
    assert rows["row_id"].equals(expected["row_id"])
    for name, value in zip(outputs, values, strict=True):
        np.testing.assert_array_equal(expected[name].to_numpy(), value)


def test_json_keeps_what_a_double_cannot() -> None:
    whole = np.array([[2**63 - 1, -(2**63)], [2**53 + 1, 7]])
    written = json.loads(json.dumps(tensor_to_json("x", "INT64", whole), allow_nan=False))
    assert written["data"] == [str(2**63 - 1), -(2**63), str(2**53 + 1), 7]
    np.testing.assert_array_equal(tensor_from_json(written), whole)

    numbers = np.array([np.nan, 0.1], np.float32)
    written = json.loads(json.dumps(tensor_to_json("x", "FP32", numbers), allow_nan=False))
    np.testing.assert_array_equal(tensor_from_json(written), numbers)


def test_the_schema_names_every_input_of_the_graph(artifact: Path) -> None:
    schema = json.loads((artifact / "schema" / "request.schema.json").read_text())
    kinds = {"tensor(string)": "BYTES", "tensor(int64)": "INT64", "tensor(float)": "FP32"}

    entries = schema["properties"]["inputs"]["items"]["anyOf"]

    graph = open_graph(artifact / "model.onnx").get_inputs()
    described = {
        entry["properties"]["name"]["const"]: (
            entry["properties"]["datatype"]["const"],
            entry["properties"]["shape"]["minItems"],
        )
        for entry in entries
    }
    assert described == {item.name: (kinds[item.type], len(item.shape)) for item in graph}


def test_both_graphs_read_the_same_bytes_of_the_weights(artifact: Path) -> None:
    def places(name: str) -> dict[str, dict[str, str]]:
        model = onnx.load(artifact / name, load_external_data=False)
        return {
            tensor.name: {entry.key: entry.value for entry in tensor.external_data}
            for tensor in model.graph.initializer
            if tensor.external_data
        }

    assert places("core.onnx") == places("model.onnx")
    assert {place["location"] for place in places("core.onnx").values()} == {"weights.bin"}
    assert (artifact / "weights.bin").stat().st_mode & 0o777 == 0o644


def test_no_file_tells_where_it_was_made(artifact: Path) -> None:
    here = str(Path(__file__).parents[2]).encode()
    for path in artifact.rglob("*"):
        assert path.is_dir() or here not in path.read_bytes(), path


class Tower(nn.Module):
    """A model of the exporter's signature with one layer that may not be published."""

    def __init__(self, spec: FeatureSpec, layer: nn.Module) -> None:
        super().__init__()
        self.linear, self.layer = nn.Linear(spec.num_numbers, 1), layer
        self.tasks = spec.task_names

    def forward(self, codes: torch.Tensor, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        logit = self.layer(self.linear(numbers)).squeeze(1) + codes.sum(1)
        return dict.fromkeys(self.tasks, logit)


def test_a_layer_left_in_training_is_refused(spec: FeatureSpec, tmp_path: Path) -> None:
    class Stuck(nn.Dropout):
        def train(self, mode: bool = True) -> "Stuck":
            return super().train(True)

    export_core(Tower(spec, Stuck(0.5)), spec, tmp_path)

    with pytest.raises(ArtifactError, match=r"training mode|chance"):
        check_graph(tmp_path / "core.onnx", is_core=True)


def test_control_flow_is_refused(tmp_path: Path) -> None:
    info = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch"])
    nodes = [onnx.helper.make_node("Identity", ["x"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "g", [info], [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    onnx.save(model, tmp_path / "fine.onnx")
    check_graph(tmp_path / "fine.onnx")
    nodes[0] = onnx.helper.make_node("SequenceEmpty", [], ["s"])
    nodes.append(onnx.helper.make_node("Identity", ["x"], ["y"]))
    graph = onnx.helper.make_graph(nodes, "g", [info], [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    onnx.save(model, tmp_path / "bad.onnx")

    with pytest.raises(ArtifactError, match="SequenceEmpty"):
        check_graph(tmp_path / "bad.onnx")
