"""Sparse experts: six ways to compute them, and the library's own choice, in one process.

    python benchmarks/moe_speed.py [--device cuda|cpu] [--small]
    python benchmarks/moe_speed.py --choice [--device cuda|cpu] [--small]

Prints one markdown table: median milliseconds of the forward pass and of forward and backward, by
CUDA events (on a CPU by process time, one thread). The library's column is checked against the
mask loop before it is timed. `--choice` measures the library's own forms on a grid of sizes and
prints the lines of `recsys_moe/moe/choice.py`. Needs torch alone, and the repository on PYTHONPATH.

Shapes: N rows, D input and output width, H hidden width, E experts, K slots a row, R = N K, C rows
an expert.
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable

import torch
from moe_forms import FORMS, KINDS, Case, Size, dtype_of, make_case, mask_loop
from torch import Tensor

from recsys_moe.moe.choice import Line, choose, nearest
from recsys_moe.moe.dispatch import combine

SIZES = (
    Size(65536, 256, 256, 64, 1),
    Size(65536, 256, 256, 64, 4),
    Size(65536, 512, 1792, 8, 2),
    Size(16384, 512, 1024, 128, 4),
    Size(8192, 4096, 14336, 8, 2),  # the layer of Mixtral 8x7B
)
SMALL = (Size(1024, 64, 128, 16, 2), Size(2048, 64, 64, 64, 1), Size(256, 128, 128, 8, 2))
LARGEST = {"cuda": 65536 * 8 * 512 * 1024, "cpu": 8192 * 8 * 128 * 256}  # N E D H
GRID = [
    Size(n, d, h, e, k)
    for n, (d, h), e, k in itertools.product(
        (32, 256, 2048, 8192, 65536),
        ((64, 64), (128, 256), (256, 512), (512, 1024)),
        (4, 8, 16, 64),
        (1, 2, 4, 6, 8),
    )
    if k <= e
]


def ours(case: Case) -> Tensor:
    return combine(case.x_ND, case.routing, case.bank)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes for a look, not for a record")
    parser.add_argument("--choice", action="store_true", help="measure the lines of choice.py")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.device == "cpu":
        torch.set_num_threads(1)
    print(f"{_machine(options.device)}, torch {torch.__version__}, {dtype_of(options.device)}.\n")
    (print_choice if options.choice else print_forms)(options.device, options.small)


def print_forms(device: str, small: bool) -> None:
    """Print the table of the six forms and of the library's choice."""
    peak = matmul_rate(device)
    print(f"A square matrix product reaches {peak / 1e12:.2f} TFLOP/s here; the floor is at it.\n")
    head = ["N D H E K", "kind", *FORMS, "ours", "form", "to best", "mask loop to ours", "to floor"]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}", flush=True)
    for size in SMALL if small else SIZES:
        plain = None
        for kind in KINDS:
            case = make_case(size, kind, device)
            times = {name: both_times(form, case, device) for name, form in FORMS.items()}
            check(case)
            mine = both_times(ours, case, device)
            assert mine is not None
            known = [t for t in times.values() if t is not None]
            best = [min(t[i] for t in known) for i in (0, 1)]
            loop = times["mask loop"]
            floor = 1e3 * flops(case) / peak
            form = choose(case.x_ND, case.routing, case.bank)
            if kind == "mlp with biases" and plain:
                form += f" ({_ratio(mine, plain)} of without)"
            plain = mine if kind == "mlp" else plain
            cells = [str(size), kind, *(_cell(t) for t in times.values()), _cell(mine), form]
            cells += [_ratio(mine, best), _ratio(loop, mine) if loop else "-"]
            cells.append(_ratio(mine, (floor, 3 * floor)))
            print(f"| {' | '.join(cells)} |", flush=True)
            del case, times
            if device == "cuda":
                torch.cuda.empty_cache()


def print_choice(device: str, small: bool) -> None:
    """Print the times of the library's own forms on a grid, and the lines that follow."""
    names = ["dense", "grouped"] if device == "cuda" else ["dense", "split", "grouped"]
    grid = [size for size in GRID if math.prod(size[:4]) <= LARGEST[device]]
    measured = []
    for size in [*grid[:: 40 if small else 1], *(() if device == "cpu" else SIZES)]:
        case = make_case(size, "mlp with biases", device)
        times = [
            both_times(
                lambda c, how=name: combine(c.x_ND, c.routing, c.bank, how=how), case, device
            )
            for name in names
        ]
        whole = {n: t[1] for n, t in zip(names, times, strict=True) if t is not None}
        measured.append((Line(size.N, 2 * size.D * size.H, size.E, size.K, "dense"), whole))
        print(f"{size}: {', '.join(f'{n} {t:.3g}' for n, t in whole.items())}", flush=True)
    print("\nThe lines that decide:\n")
    for line in sorted(condense(measured, names, 1.1 if device == "cuda" else 1.3)):
        print(
            f'    Line({line.rows}, {line.weights}, {line.experts}, {line.slots}, "{line.form}"),'
        )


def condense(
    measured: list[tuple[Line, dict[str, float]]], names: list[str], within: float
) -> list[Line]:
    """Return the fewest lines, greedily, whose nearest names a form `within` times the best."""
    right = [
        line._replace(form=next(n for n in names if t.get(n, 1e9) <= within * min(t.values())))
        for line, t in measured
    ]
    kept = [right[len(right) // 2]]
    while True:
        loss = [t.get(nearest(kept, *line[:4]), 1e9) / min(t.values()) for line, t in measured]
        worst = max(range(len(loss)), key=loss.__getitem__)
        if loss[worst] <= within or right[worst] in kept:
            return kept
        kept.append(right[worst])


def check(case: Case) -> None:
    """Refuse to time what is wrong: the library against the mask loop."""
    with torch.no_grad():
        want, got = mask_loop(case).float(), ours(case).float()
    error = ((got - want).norm() / want.norm()).item()
    assert error < 0.02, f"relative error {error}"


def both_times(
    form: Callable[[Case], Tensor], case: Case, device: str
) -> tuple[float, float] | None:
    """Return the medians of forward, and of forward and backward; None where memory ends."""
    wanted = [case.x_ND, case.routing.weights, *case.bank.parameters()]

    def forward() -> None:
        with torch.no_grad():
            form(case)

    def both() -> None:
        y = form(case)
        torch.autograd.grad(y, wanted, torch.ones_like(y))

    try:
        return median(forward, device), median(both, device)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def median(run: Callable[[], None], device: str) -> float:
    """Return the median of up to ten runs (fewer if they are slow), in milliseconds."""
    once = [measure(run, device) for _ in range(2)][1]
    repeats = max(3, min(10, int(2000 / max(once, 1e-3))))
    return statistics.median(measure(run, device) for _ in range(repeats))


def measure(run: Callable[[], None], device: str) -> float:
    """Return one run's time: CUDA events, or the process's time on a CPU."""
    if device == "cpu":
        start = time.process_time()
        run()
        return 1e3 * (time.process_time() - start)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    run()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last)


def matmul_rate(device: str) -> float:
    """Return the FLOP/s of a large square product, what the floor is counted with."""
    width = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(width, width, device=device, dtype=dtype_of(device)) for _ in range(2))
    return 2e3 * width**3 / median(lambda: a @ b, device)


def flops(case: Case) -> float:
    """Return the forward's: two for each weight of each chosen expert of each row."""
    one = sum(p.numel() for p in case.bank.parameters() if p.dim() == 3) / case.bank.num_experts
    return 2.0 * case.routing.weights.numel() * one


def _machine(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU, one thread"


def _cell(times: tuple[float, float] | None) -> str:
    return "-" if times is None else f"{times[0]:.3g} / {times[1]:.3g}"


def _ratio(over: tuple[float, ...] | list[float], under: tuple[float, ...] | list[float]) -> str:
    return " / ".join(f"{a / b:.2f}" for a, b in zip(over, under, strict=True))


if __name__ == "__main__":
    main()
