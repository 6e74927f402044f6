"""Sparse experts in ONNX Runtime on a CPU: the forms that a graph can have, beside torch.

    python benchmarks/moe_onnx.py [--small]

Prints one markdown table: median milliseconds of process time, one thread, of a router and a bank.
Every form is compared with torch at 0, 1, 3, 64 and N rows before it is timed, and its choice of
experts with torch's. The rounds of all forms of a size are interleaved. Needs the extra `train` and
the repository on PYTHONPATH.

Shapes: N rows, D input and output width, H hidden width, E experts, K slots a row.
"""

import argparse
import contextlib
import io
import logging
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
from moe_forms import Size
from torch import Tensor, nn

from recsys_moe.moe import dispatch
from recsys_moe.moe.banks import Bank, MLPBank
from recsys_moe.moe.banks_gated import SwiGLUBank
from recsys_moe.moe.router_top_k import TopKRouter
from recsys_moe.moe.routing import Routing
from recsys_moe.moe.unrolled import unrolled

SIZES = (
    (Size(8192, 256, 512, 16, 2), "mlp"),
    (Size(8192, 256, 256, 16, 2), "mlp"),
    (Size(8192, 128, 256, 8, 2), "mlp"),
    (Size(8192, 128, 256, 8, 4), "mlp"),
    (Size(8192, 128, 128, 64, 2), "mlp"),
    (Size(8192, 128, 448, 8, 2), "swiglu"),
    (Size(256, 128, 256, 8, 2), "mlp"),
    (Size(1, 128, 256, 8, 2), "mlp"),
    (Size(1, 256, 64, 8, 2), "mlp"),
)
SMALL = ((Size(256, 64, 64, 4, 2), "mlp"), (Size(256, 64, 64, 4, 2), "swiglu"))
BATCHES = (0, 1, 3, 64)
ROUNDS, TOLERANCE, MARGIN = 15, 1e-5, 1e-5


class Layer(nn.Module):
    """A router and a bank; what it returns last is the routing's index and logits."""

    def __init__(self, router: TopKRouter, bank: Bank, form: str) -> None:
        super().__init__()
        self.router, self.bank, self.form = router, bank, form

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mixture, the index (N, K) and the logits (N, E)."""
        routing = self.router(x)
        mixed = FORMS[self.form](x, routing, self.bank)
        return mixed, routing.index, routing.logits


def where(x: Tensor, routing: Routing, bank: Bank) -> Tensor:
    return unrolled(x, [routing], bank)[0]


def moe_operator(x: Tensor, routing: Routing, bank: Bank) -> Tensor:
    """`com.microsoft.MoE`: its softmax over the chosen logits is the router's own."""
    up, up_bias, down, down_bias = bank.stacked()
    return torch.onnx.ops.symbolic(
        "com.microsoft::MoE",
        (x, routing.logits, up, up_bias, down, down_bias),
        {"k": routing.index.shape[1], "activation_type": "relu", "normalize_routing_weights": 1},
        dtype=x.dtype,
        shape=x.shape,
        version=1,
    )


FORMS: dict[str, Callable[[Tensor, Routing, Bank], Tensor]] = {
    "dense": dispatch.dense,
    "where": where,
    "com.microsoft.MoE": moe_operator,
}
EAGER = ("dense", "split", "where")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="sizes for a look, not for a record")
    sizes = SMALL if parser.parse_args().small else SIZES
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, one thread, ONNX Runtime ", end="")
    print(f"{onnxruntime.__version__}, torch {torch.__version__}, float32, ms (nodes).\n")
    head = ["N D H E K", "kind", *(f"ORT {form}" for form in FORMS)]
    head += ["dense / where", *(f"torch {form}" for form in EAGER), "largest gap", "same experts"]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}", flush=True)
    for size, kind in sizes:
        print(f"| {' | '.join(measure(size, kind))} |", flush=True)


def measure(size: Size, kind: str) -> list[str]:
    """Return the cells of one size."""
    torch.manual_seed(0)
    if kind == "mlp":
        bank: Bank = MLPBank(size.E, size.D, [size.H, size.D], last_activation=False)
    else:
        bank = SwiGLUBank(size.E, size.D, size.H)
    router, x = TopKRouter(size.D, size.E, size.K), torch.randn(size.N, size.D)
    forms = [form for form in FORMS if kind == "mlp" or form != "com.microsoft.MoE"]
    graphs = {form: graph(Layer(router, bank, form), size.D) for form in forms}
    found = [check(session, router, bank, x) for session, _ in graphs.values()]
    calls: dict[str, Callable[[], object]] = {
        f"ORT {form}": lambda session=session: session.run(None, {"x": x.numpy()})
        for form, (session, _) in graphs.items()
    }
    how = {
        "dense": lambda routing: dispatch.dense(x, routing, bank),
        "split": lambda routing: dispatch.by_expert(x, routing, bank, "split"),
        "where": lambda routing: where(x, routing, bank),
    }
    calls |= {f"torch {form}": lambda form=form: how[form](router(x)) for form in EAGER}
    took = medians(calls)
    cells = [str(size), kind]
    for form in FORMS:
        cells.append(f"{took[f'ORT {form}']:.3g} ({graphs[form][1]})" if form in graphs else "-")
    cells.append(f"{took['ORT dense'] / took['ORT where']:.2g}")
    cells += [f"{took[f'torch {form}']:.3g}" for form in EAGER]
    gap, same = max(gap for gap, _ in found), min(same for _, same in found)
    return [*cells, f"{gap:.1e}", f"{same:.4%}"]


def graph(layer: Layer, width: int) -> tuple[onnxruntime.InferenceSession, int]:
    """Return a session of one thread, and how many nodes the graph has."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            layer.eval(),
            (torch.randn(3, width),),
            dynamo=True,
            opset_version=21,
            dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    logging.disable(disabled)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = program.model_proto
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session, len(model.graph.node)


def check(
    session: onnxruntime.InferenceSession, router: TopKRouter, bank: Bank, x_ND: Tensor
) -> tuple[float, float]:
    """Return the largest gap to torch, and the share of clear rows that go to the same experts.

    A row is clear if its last chosen logit is above the next one by more than the margin.
    """
    gap, rows, same_rows = 0.0, 0, 0
    for count in (*BATCHES, len(x_ND)):
        x = x_ND[:count]
        mixed, index, _ = session.run(None, {"x": x.numpy()})
        with torch.no_grad():
            routing = router(x)
            wanted = dispatch.dense(x, routing, bank)
        gap = max(gap, float(np.abs(mixed - wanted.numpy()).max(initial=0)))
        last, following = routing.logits.sort(descending=True).values[:, index.shape[1] - 1 :].T[:2]
        clear = (last - following > MARGIN).numpy()
        same = (np.sort(index, axis=1) == routing.index.sort().values.numpy()).all(1)
        rows, same_rows = rows + int(clear.sum()), same_rows + int(same[clear].sum())
    share = same_rows / rows
    if gap > TOLERANCE or share < 0.9999:
        raise SystemExit(f"wanted a gap of at most {TOLERANCE}, got {gap} and {share:.4%} of rows")
    return gap, share


@torch.no_grad()
def medians(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return milliseconds of process time a call, the median of interleaved rounds."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            took[name].append(timed(call))
    return {name: 1e3 * statistics.median(values) for name, values in took.items()}


def timed(call: Callable[[], object]) -> float:
    """Return seconds of process time a call; short ones are repeated."""
    start, repeats = time.process_time(), 0
    while repeats == 0 or time.process_time() - start < 0.02:
        call()
        repeats += 1
    return (time.process_time() - start) / repeats


if __name__ == "__main__":
    main()
