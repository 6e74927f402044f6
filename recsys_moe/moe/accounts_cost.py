"""What one module costs, found without computing anything.

Shapes: E experts, K slots of a row.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from recsys_moe.errors import RequestError
from recsys_moe.moe.routing import Routing


def num_slots(router: nn.Module) -> int:
    """Return how many experts a row uses at most: K, or all in sight of a dense gate.

    A router says its `slots` itself where its routing does not show them.
    """
    if isinstance(getattr(router, "slots", None), int):
        return size(router, "slots")
    with _traced(router):
        routing: Routing = router(_row(router, size(router, "width")))
    if routing.index is None:
        return int(getattr(router, "num_visible", routing.num_experts))
    return routing.weights.shape[-1]


def flops_per_row(module: nn.Module, width: int) -> int | None:
    """Return the FLOPs of the products in a module's forward pass on one row, nothing computed.

    A module may say its own `flops_per_row`, where its arithmetic is no product of tensors: a
    number, or None where that is not known.
    """
    if hasattr(module, "flops_per_row"):
        own = module.flops_per_row
        return own if isinstance(own, int) else None
    counter = FlopCounterMode(display=False)
    with _traced(module), counter:
        module(_row(module, width))
    return int(counter.get_total_flops())


def count(module: nn.Module) -> int:
    """Count a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def size(module: nn.Module, name: str) -> int:
    """Return one of a module's sizes.

    Raises:
        RequestError: The module has no such number.
    """
    value = getattr(module, name, None)
    if not isinstance(value, int):
        kind = type(module).__name__
        raise RequestError(f"account of {kind}", wanted=f"a number `{name}`", got=repr(value))
    return value


def _row(module: nn.Module, width: int) -> Tensor:
    like = next(module.parameters(), torch.empty(0))
    return torch.empty(1, width, dtype=like.dtype, device=like.device)


@contextlib.contextmanager
def _traced(module: nn.Module) -> Iterator[None]:
    """Let a module run for its shapes alone, all within it in evaluation mode."""
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.enable_grad():
            yield
    finally:
        for part, training in before.items():
            part.training = training
