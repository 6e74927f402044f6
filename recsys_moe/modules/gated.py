"""What a model says of its gates: the layers of experts it has, and what each gate decided."""

from dataclasses import dataclass

from recsys_moe.moe.monitor import Monitor
from recsys_moe.moe.router_base import Router
from recsys_moe.moe.routing import Routing


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of experts as its gates see it.

    Attributes:
        name: "experts", or "level 0", "level 1", … of PLE.
        experts: A name for each expert, E.
        gates: A name for each gate, T: its task, "shared" (PLE) or "all" (one gate for all tasks).
        owners: For each expert the task whose own it is, None for a shared one.
        visible: (T, E), which experts a gate may use.
    """

    name: str
    experts: tuple[str, ...]
    gates: tuple[str, ...]
    owners: tuple[str | None, ...]
    visible: tuple[tuple[bool, ...], ...]


@dataclass(frozen=True, slots=True)
class Gated:
    """What one gate decided for a batch, numbered over all experts of its layer.

    Experts that the gate does not see have weight and probability 0 and a logit of -inf.
    """

    layer: str
    gate: str
    router: Router
    routing: Routing


def monitor_of(layer: Layer, *, sample_rows: int = 256) -> Monitor:
    """Return a Monitor of a layer; it looks at outputs on at most `sample_rows` rows."""
    return Monitor(
        len(layer.experts),
        layer.gates,
        owners=layer.owners,
        visible=layer.visible,
        name=layer.name,
        sample_rows=sample_rows,
    )
