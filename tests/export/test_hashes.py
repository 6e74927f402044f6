"""A hash that becomes a code is the same number in the pipeline, the graph and the reference."""

import json
from pathlib import Path

import numpy as np
import onnx
import polars as pl

from export.graph import INT64, STRING, GraphBuilder, open_graph, tensor
from export.hash_nodes import hash_codes
from export.reference import murmur3_32
from pipelines.encoding.hashes import murmur32

GOLDEN = Path(__file__).parents[1] / "golden" / "murmur3.json"
PUBLISHED = {  # of other implementations of the algorithm
    "": 0,
    "hello": 0x248BFA47,
    "hello, world": 0x149BBB7F,
    "The quick brown fox jumps over the lazy dog": 0x2E4FF723,
}
BUCKETS = 2**31 - 18


def golden() -> dict[str, int]:
    pairs = json.loads(GOLDEN.read_text())
    assert len(pairs) == 100
    return {**dict(pairs), **PUBLISHED}


def test_the_pipeline_hashes_as_published_and_as_ever() -> None:
    hashes = golden()

    assert pl.DataFrame({"w": list(hashes)}).select(murmur32(pl.col("w")))["w"].to_list() == list(
        hashes.values()
    )


def test_the_reference_hashes_as_published_and_as_ever() -> None:
    hashes = golden()

    assert [murmur3_32(text.encode()) for text in hashes] == list(hashes.values())


def test_the_graph_hashes_as_published_and_as_ever(tmp_path: Path) -> None:
    hashes = golden()
    graph = GraphBuilder("hash")
    hash_codes(graph, "text", BUCKETS)
    graph.rename_last("code")
    model = graph.model([tensor("text", STRING, "batch")], [tensor("code", INT64, "batch")])
    onnx.save(model, tmp_path / "hash.onnx")

    (codes,) = open_graph(tmp_path / "hash.onnx").run(
        ["code"], {"text": np.array(list(hashes), object)}
    )

    assert codes.tolist() == [2 + value % BUCKETS for value in hashes.values()]
