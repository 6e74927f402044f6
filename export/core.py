"""The trained model as an ONNX graph: codes and numbers in, predictions and logits out."""

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir
import torch
from torch import Tensor, nn

from export.frozen import inline_experts
from export.graph import INNER, IR_VERSION, OPSET
from export.manifest import CODES, CORE_FILE, NUMBERS, WEIGHTS_FILE
from export.outputs import logits_of
from recsys_moe.spec import LARGEST_LOG, FeatureSpec, Task

_EXTERNAL_FROM_BYTES = 1024
_READABLE = 0o644
_EXAMPLE_ROWS = 3


class Predictions(nn.Module):
    """A model with what users ask for on top: each probability, each amount, then each logit.

    A chained task's product is computed from the factors that are put out, in float32, so that
    `p_click_and_conversion <= p_click` holds to the bit. Logits are corrected for a task whose
    negatives were thinned out for training, so that probabilities are those of all rows.
    """

    def __init__(
        self, model: nn.Module, spec: FeatureSpec, outputs: Sequence[str] | None = None
    ) -> None:
        """Choose what to put out.

        Args:
            model: One that has at least the tasks that the outputs need.
            spec: The model's feature spec.
            outputs: Names of the spec's predictions, in their order; None for all.
        """
        super().__init__()
        outputs = spec.predictions if outputs is None else outputs
        chains = {f"p_{name}": chain for name, chain in spec.outputs()}
        self.model = model
        self.products = tuple(chains[name] for name in outputs if name in chains)
        self.regressions = tuple(t for t in spec.regressions if f"y_{t.name}" in outputs)
        logits = logits_of(spec, outputs)
        self.binary = tuple(task for task in spec.tasks if f"logit_{task.name}" in logits)
        self.names = (*outputs, *logits)

    def forward(self, codes: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
        """Return float32 [batch] for every name of `names`: the outputs, then their logits."""
        raw = {task: logit.float() for task, logit in self.model(codes, numbers).items()}
        logits = {task.name: _corrected(task, raw[task.name]) for task in self.binary}
        single = {task: torch.sigmoid(logit) for task, logit in logits.items()}
        probabilities = []
        for chain in self.products:
            product = single[chain[0]]
            for task in chain[1:]:
                product = product * single[task]
            probabilities.append(product)
        amounts = [_amount(task, raw[task.name]) for task in self.regressions]
        return (*probabilities, *amounts, *logits.values())


def _corrected(task: Task, logit: Tensor) -> Tensor:
    return logit + math.log(task.keep_rate) if task.keep_rate < 1 else logit


def _amount(task: Task, z: Tensor) -> Tensor:
    """Return a regression's prediction in the unit of its label, from its standardised one."""
    value = z * (1 / task.scale) + task.mean
    return torch.expm1(value.clamp(0.0, LARGEST_LOG)) if task.transform == "log1p" else value


def export_core(
    model: nn.Module, spec: FeatureSpec, folder: Path, outputs: Sequence[str] | None = None
) -> onnx.ModelProto:
    """Write `core.onnx` and `weights.bin` and return the former, its weights left in the latter.

    Args:
        model: In eval mode: (codes int32 [B, num_slots], numbers float32 [B, num_numbers]) to a
            dict of logits [B] per task.
        spec: The feature spec that the model was built for.
        folder: Where the two files go.
        outputs: Names of the spec's predictions, in their order; None for all.
    """
    predictions = Predictions(model, spec, outputs).eval()
    example = (
        torch.ones(_EXAMPLE_ROWS, spec.num_slots, dtype=torch.int32),
        torch.zeros(_EXAMPLE_ROWS, spec.num_numbers),
    )
    batch = torch.export.Dim("batch", min=1)
    with _quiet():
        program = torch.onnx.export(
            predictions,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=[CODES, NUMBERS],
            output_names=list(predictions.names),
            dynamic_shapes={"codes": {0: batch}, "numbers": {0: batch}},
            verbose=False,
        )
    assert program is not None  # only a call that is given a file name returns nothing
    path = folder / CORE_FILE
    onnx_ir.save(
        program.model,
        path,
        external_data=WEIGHTS_FILE,
        size_threshold_bytes=_EXTERNAL_FROM_BYTES,
    )
    weights = folder / WEIGHTS_FILE
    weights.touch()  # a model of a few numbers has nothing outside its graph
    weights.chmod(_READABLE)
    core = onnx.load(path, load_external_data=False)
    _tidy(core)
    inline_experts(core, model)
    onnx.save(core, path)
    return core


def _tidy(model: onnx.ModelProto) -> None:
    """Move inner names out of the way of column names; drop traces of the exporting machine."""
    graph = model.graph
    outer = {info.name for info in (*graph.input, *graph.output)}

    def renamed(name: str) -> str:
        return name if not name or name in outer else f"core{INNER}{name}"

    for node in graph.node:
        node.name = renamed(node.name)
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
        tensor.ClearField("metadata_props")
        tensor.ClearField("doc_string")
    for info in (*graph.input, *graph.output):
        info.ClearField("metadata_props")
        info.ClearField("doc_string")
    graph.ClearField("value_info")
    graph.ClearField("metadata_props")
    graph.ClearField("doc_string")
    graph.name = "core"
    model.ClearField("metadata_props")
    model.ClearField("functions")
    model.ClearField("doc_string")
    model.ir_version = IR_VERSION
    model.producer_name = "recsys-moe"
    model.ClearField("producer_version")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and advice to itself; what fails is raised all the same."""
    disabled = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
