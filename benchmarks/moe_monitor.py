"""What the Monitor adds to a training step, in per cent of it.

    python benchmarks/moe_monitor.py [--device cuda|cpu] [--small]

Two gates over one bank, forward, backward and Adam; median wall time of a step with `update` and
without, and of one `watch` and `read` together, which happen once per log interval. Prints one
Markdown table. Needs torch alone, and the repository on PYTHONPATH.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from recsys_moe.moe.banks import MLPBank
from recsys_moe.moe.dispatch import combine
from recsys_moe.moe.monitor import Monitor
from recsys_moe.moe.router_softmax import SoftmaxRouter
from recsys_moe.moe.router_top_k import TopKRouter

SIZES = ((1024, 64, 8, None), (8192, 256, 8, None), (8192, 256, 16, 2), (65536, 256, 64, 4))
SMALL = ((1024, 64, 8, None), (1024, 64, 16, 2))
INTERVAL = 50
TASKS = ("click", "like")
REPEATS = 30


def milliseconds(work: Callable[[], object], device: str, repeats: int = REPEATS) -> float:
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[3:])


def measure(rows: int, width: int, experts: int, k: int | None, device: str) -> str:
    torch.manual_seed(0)
    routers = torch.nn.ModuleList(
        SoftmaxRouter(width, experts) if k is None else TopKRouter(width, experts, k) for _ in TASKS
    ).to(device)
    bank, monitor = MLPBank(experts, width, [2 * width, width]).to(device), Monitor(experts, TASKS)
    monitor.to(device)
    optimizer = torch.optim.Adam([*routers.parameters(), *bank.parameters()])
    x_ND = torch.randn(rows, width, device=device)

    def step(*, watched: bool) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            routings = {task: router(x_ND) for task, router in zip(TASKS, routers, strict=True)}
            total = torch.stack([combine(x_ND, r, bank).mean() for r in routings.values()]).sum()
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        if watched:
            monitor.update(routings)

    def log() -> None:
        monitor.watch(bank, x_ND)
        monitor.read()

    plain, watched = [], []
    for _ in range(3):  # by turns, so that a busy machine is fair to both
        plain.append(milliseconds(lambda: step(watched=False), device, REPEATS // 3))
        watched.append(milliseconds(lambda: step(watched=True), device, REPEATS // 3))
    with torch.no_grad():
        routings = {task: router(x_ND) for task, router in zip(TASKS, routers, strict=True)}
    update, once = milliseconds(lambda: monitor.update(routings), device), milliseconds(log, device)
    share = (update + once / INTERVAL) / min(plain)
    times = f"{min(plain):.2f} | {min(watched):.2f} | {update:.3f} | {once:.2f}"
    return f"| {rows} {width} {experts} {k or 'dense'} | {times} | {share:.2%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, {arguments.device}, milliseconds; log every {INTERVAL} steps"
    )
    print("| N D E K | step | with update | update | watch and read | share of a step |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for size in SMALL if arguments.small else SIZES:
        print(measure(*size, device=arguments.device), flush=True)


if __name__ == "__main__":
    main()
