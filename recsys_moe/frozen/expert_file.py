"""A frozen expert's file: an ONNX graph from columns to numbers, and what it says of itself.

The graph has one float32 input (N, M), the columns of the features that it names, and one float32
output (N, P). Under the key `METADATA` of its metadata lies the rest, as JSON.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from recsys_moe.errors import RequestError

METADATA, VERSION = "recsys_moe.expert", 1
OPSET, ML_OPSET, IR_VERSION = 21, 4, 10
"""The operator sets and file format of every expert, so that it fits into an exported graph."""
INPUT, OUTPUT = "frozen.columns", "frozen.values"
RUN_ERRORS = (
    runtime.Fail,
    runtime.InvalidArgument,
    runtime.InvalidGraph,
    runtime.InvalidProtobuf,
    runtime.NotImplemented,
    runtime.RuntimeException,
)
_FATAL_ONLY = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFile:
    """What is read out of an expert's file.

    Attributes:
        name: What people call it, `lightgbm_income`.
        kind: What it was made from, `lightgbm.LGBMClassifier`.
        features: The features that it reads, in order; each is all of its columns.
        meaning: A digest of what those columns mean (`columns.meaning_of`).
        means: The mean of each output over the rows it was frozen with, P of them.
        spreads: Their standard deviations; 1 for an output that is constant.
        input_width: M.
        output_width: P.
        content: The file's bytes.
    """

    name: str
    kind: str
    features: tuple[str, ...]
    meaning: str
    means: tuple[float, ...]
    spreads: tuple[float, ...]
    input_width: int
    output_width: int
    content: bytes


def read_expert(path: Path) -> ExpertFile:
    """Read an expert's file.

    Raises:
        RequestError: No file, or none that `freeze` wrote.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or "an unreadable file"
        raise RequestError(str(path), wanted="a frozen expert", got=reason) from None
    return parse_expert(content, str(path))


def parse_expert(content: bytes, what: str = "frozen expert") -> ExpertFile:
    """Read an expert from the bytes of its file; `what` names it in an error.

    Raises:
        RequestError: The bytes are not what `freeze` wrote.
    """
    session = open_expert(content, what)
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shapes = [(v.name, v.type, v.shape) for v in (*inputs, *outputs)]
    if text is None or len(shapes) != 2:
        got = "another ONNX model" if text is None else f"{len(inputs)} inputs"
        raise RequestError(what, wanted="an expert that `freeze` wrote", got=got)
    for _, kind, shape in shapes:
        if kind != "tensor(float)" or len(shape) != 2 or not _positive(shape[1]):
            wanted = "float32 input and output of two dimensions, the second fixed and above 0"
            raise RequestError(what, wanted=wanted, got=f"{kind} {shape}")
    said = _parsed(text, what)
    widths = inputs[0].shape[1], outputs[0].shape[1]
    if not len(said["means"]) == len(said["spreads"]) == widths[1]:
        got = f"{len(said['means'])} and {len(said['spreads'])}"
        raise RequestError(f"{what}, means and spreads", wanted=f"{widths[1]} each", got=got)
    return ExpertFile(input_width=widths[0], output_width=widths[1], content=content, **said)


def open_expert(content: bytes, what: str = "frozen expert") -> onnxruntime.InferenceSession:
    """Open the graph on one core of the CPU, so that it adds up in one order on any machine."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except RUN_ERRORS as error:
        reason = str(error).splitlines()[0]
        raise RequestError(what, wanted="an ONNX model", got=reason) from None


def describe(
    *,
    name: str,
    kind: str,
    features: tuple[str, ...],
    meaning: str,
    means: list[float],
    spreads: list[float],
) -> str:
    """Return what goes into the metadata of an expert's file."""
    words = {"name": name, "kind": kind, "features": features, "meaning": meaning}
    said = {**words, "means": means, "spreads": spreads, "version": VERSION}
    return json.dumps(said, sort_keys=True, allow_nan=False)


def _parsed(text: str, what: str) -> dict[str, Any]:
    """Return what an expert says of itself, every entry of its type."""
    try:
        said = json.loads(text)
        version = said.pop("version")
        words = {key: str(said.pop(key)) for key in ("name", "kind", "meaning")}
        features = tuple(str(feature) for feature in said.pop("features"))
        numbers = {k: tuple(float(v) for v in said.pop(k)) for k in ("means", "spreads")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise RequestError(f"{what}, metadata", wanted="what `freeze` writes", got=got) from None
    if version != VERSION:
        raise RequestError(f"{what}, version", wanted=str(VERSION), got=repr(version))
    values = [*numbers["means"], *numbers["spreads"]]
    if not all(map(math.isfinite, values)) or min(numbers["spreads"], default=1) <= 0:
        wanted = "finite means, and spreads above 0"
        raise RequestError(f"{what}, metadata", wanted=wanted, got=repr(values))
    return {**words, "features": features, **numbers}


def _positive(size: object) -> bool:
    return isinstance(size, int) and size > 0
