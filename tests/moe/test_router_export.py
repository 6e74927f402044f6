"""Every router that can be exported is the same function in ONNX Runtime."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tests.moe.router_cases import HIDING, ROW_BY_ROW, STATIC, VISIBLE, random, rows

BATCHES = (0, 1, 3, 64, 257)
ALONE = ROW_BY_ROW | STATIC
OPSETS = [21, pytest.param(22, marks=pytest.mark.slow), pytest.param(23, marks=pytest.mark.slow)]
Run = Callable[[Tensor], list[np.ndarray]]


class Flat(nn.Module):
    """A router's routing as a tuple; `kept` as numbers, so that each output is compared alike."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.router = router

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        routing = self.router(x)
        index = () if routing.index is None else (routing.index,)
        return (routing.weights, routing.dense(), routing.chosen().float(), routing.probs, *index)


def exported(module: nn.Module, opset: int) -> Run:
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            (rows(3),),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    logging.disable(disabled)
    assert program is not None
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return lambda x: session.run(None, {"x": x.numpy()})


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", ALONE)
def test_the_graph_is_the_router(name: str, opset: int) -> None:
    module = Flat(random(ALONE[name]))
    run = exported(module, opset)
    for count in BATCHES:
        x = rows(count, seed=count)
        for got, wanted in zip(run(x), module(x), strict=True):
            np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", HIDING)
def test_the_graph_hides_the_same_experts(name: str) -> None:
    module = Flat(random(ROW_BY_ROW[name], visible=VISIBLE))
    x = rows(64)

    for got, wanted in zip(exported(module, 21)(x), module(x), strict=True):
        np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["mixtral", "switch", "noisy", "sigmoid", "top-p"])
def test_the_graph_gives_ties_to_the_first_experts(name: str) -> None:
    module = Flat(random(ROW_BY_ROW[name]))
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.zero_()

    index = exported(module, 21)(rows(5))[-1]

    assert index.tolist() == [list(range(index.shape[1]))] * 5
