"""What a graph must be before it is published: portable, made for inference, right at any size."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from export.graph import count_operators, open_graph
from recsys_moe.errors import ArtifactError

BATCHES = (0, 1, 2, 3, 257)
_FORBIDDEN = {
    "Dropout": "training mode left on",
    "Loop": "control flow",
    "If": "control flow",
    "Scan": "control flow",
    "EmbeddingBag": "a bag instead of Embedding and a mask",
    "NonZero": "a shape that depends on the values",
    "RandomNormal": "chance",
    "RandomUniform": "chance",
    "RandomNormalLike": "chance",
    "RandomUniformLike": "chance",
    "Bernoulli": "chance",
    "Multinomial": "chance",
}
_DOMAINS = {"", "ai.onnx.ml", "com.microsoft"}
_MOST_SHAPE_NODES = 4
"""Of `Shape` and `Expand` each in the core: where a parameter meets the batch, and no more."""
_RUN_ERRORS = (runtime.Fail, runtime.InvalidArgument, runtime.RuntimeException)

Feeds = dict[str, npt.NDArray[Any]]


def check_graph(
    path: Path, *, is_core: bool = False, by_rows: bool = False, gates: int = 0
) -> None:
    """Run the full ONNX checker and refuse operators that do not belong in an artifact.

    Args:
        path: The graph's file, its external data beside it.
        is_core: The part that a GPU runs: shape arithmetic in it is refused too.
        by_rows: Whether each expert is computed on the rows that chose it: the graph then has a
            shape that depends on the values for each, which is refused elsewhere.
        gates: How many gates choose some of their experts; each may spread its weights with one
            more piece of shape arithmetic.

    Raises:
        ArtifactError: With the operator, or the checker's first line.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "an error")
        raise ArtifactError(
            str(path), wanted="a graph that onnx.checker passes", got=first
        ) from None
    model = onnx.load(path, load_external_data=False)
    counts = count_operators(model)
    for name in counts:
        if name == "NonZero" and by_rows:
            continue
        if name in _FORBIDDEN or name.startswith("Sequence") or name == "SplitToSequence":
            why = _FORBIDDEN.get(name, "a sequence")
            raise ArtifactError(str(path), wanted="a graph for inference", got=f"{name}: {why}")
    for node in model.graph.node:
        if node.domain not in _DOMAINS:
            raise ArtifactError(str(path), wanted="standard operators", got=repr(node.domain))
        if node.op_type == "BatchNormalization" and any(
            attribute.name == "training_mode" and attribute.i for attribute in node.attribute
        ):
            raise ArtifactError(
                str(path), wanted="a graph for inference", got="BatchNormalization in training mode"
            )
    most = _MOST_SHAPE_NODES + gates
    for name in ("Shape", "Expand") if is_core and not by_rows else ():
        if counts.get(name, 0) > most:
            raise ArtifactError(
                str(path), wanted=f"at most {most} {name} nodes", got=str(counts[name])
            )


def check_batches(
    path: Path,
    feeds_of: Callable[[int], Feeds],
    outputs: Sequence[str],
    batches: Iterable[int] = BATCHES,
) -> None:
    """Run a graph at awkward batch sizes; every output must be finite float32 [batch].

    Raises:
        ArtifactError: With the batch size and the output, or the runtime's message.
    """
    session = open_graph(path)
    for rows in batches:
        try:
            values = session.run(list(outputs), feeds_of(rows))
        except _RUN_ERRORS as error:
            line = str(error).splitlines()[0]
            raise ArtifactError(f"{path}, batch of {rows}", wanted="outputs", got=line) from None
        for name, value in zip(outputs, values, strict=True):
            if value.shape != (rows,) or value.dtype != np.float32 or not np.isfinite(value).all():
                raise ArtifactError(
                    f"{path}, batch of {rows}, {name}",
                    wanted=f"finite float32 [{rows}]",
                    got=f"{value.dtype} {list(value.shape)}",
                )
