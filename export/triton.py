"""A model repository for Triton's ONNX Runtime backend, without a second copy of the weights."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from export.columns import input_names
from export.manifest import MODEL_FILE, WEIGHTS_FILE
from recsys_moe.files import write_text
from recsys_moe.spec import Column

_TYPES = {"string": "TYPE_STRING", "int64": "TYPE_INT64", "float32": "TYPE_FP32"}
_EXECUTABLE = 0o755


def write_triton(
    folder: Path, name: str, columns: Iterable[Column], outputs: Sequence[str]
) -> None:
    """Write `triton/config.pbtxt` and `triton/install.sh` of an artifact.

    Triton wants its files under `REPOSITORY/NAME/1/`. An artifact holds each file once and no
    links, so the script makes that folder from the artifact where Triton runs.

    Args:
        folder: The artifact.
        name: What Triton calls the model.
        columns: The inputs.
        outputs: The predictions.
    """
    name = quote(name, safe="")  # it becomes a folder
    write_text(folder / "triton" / "config.pbtxt", config(name, columns, outputs))
    script = folder / "triton" / "install.sh"
    write_text(script, _INSTALL.format(name=name, model=MODEL_FILE, weights=WEIGHTS_FILE))
    script.chmod(_EXECUTABLE)


def config(name: str, columns: Iterable[Column], outputs: Sequence[str]) -> str:
    """Return the model's configuration in protobuf's text format."""
    inputs = []
    for column in columns:
        first, *length = input_names(column)
        inner = f"{column.dim}" if column.dim else "-1" if column.is_list else ""
        dims = f"[ -1, {inner} ]" if inner else "[ -1 ]"
        inputs.append(_tensor(first, _TYPES[column.type], dims))
        inputs += [_tensor(other, "TYPE_INT64", "[ -1 ]") for other in length]
    answers = [_tensor(output, "TYPE_FP32", "[ -1 ]") for output in outputs]
    return _CONFIG.format(
        name=json.dumps(name, ensure_ascii=False),
        inputs=",\n".join(inputs),
        outputs=",\n".join(answers),
    )


def _tensor(name: str, kind: str, dims: str) -> str:
    quoted = json.dumps(name, ensure_ascii=False)
    return f"  {{ name: {quoted}, data_type: {kind}, dims: {dims} }}"


_CONFIG = """\
# Requests carry their own batch: a scalar column is [rows], so sample/request.json can be posted as
# it is. Text is looked up on the CPU; the graph's other outputs, logit_*, may be added below.
name: {name}
backend: "onnxruntime"
max_batch_size: 0
input [
{inputs}
]
output [
{outputs}
]
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]
"""

_INSTALL = """\
#!/bin/sh
# Put this model into a Triton model repository: sh triton/install.sh /path/to/repository
set -eu
artifact=$(cd "$(dirname "$0")/.." && pwd)
repository=${{1:?usage: install.sh REPOSITORY}}
target="$repository/{name}"
mkdir -p "$target/1"
cp "$artifact/{weights}" "$artifact/{model}" "$target/1/"
cp "$artifact/triton/config.pbtxt" "$target/"
echo "installed $target"
"""
