r"""Watch how a bank of experts is used, without waiting for the device before a log is written.

Shapes: N rows, T tasks (gates), E experts, K slots of a row, M of a batch, O an expert's output
width, X outputs of a batch.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recsys_moe.errors import RequestError
from recsys_moe.moe.monitor_health import Health
from recsys_moe.moe.routing import Routing


class Monitor(nn.Module):
    """Add up what gates decide over an interval; read it once at the end.

    `update` adds sums over rows to buffers on the device, and `watch` looks at the experts' outputs
    on a few rows; neither waits. `read` makes one transfer, returns a `Health` and starts a new
    interval, so that an expert which dies shows in the first interval in which it is dead.

    >>> from recsys_moe.moe.router_softmax import SoftmaxRouter
    >>> monitor = Monitor(3, tasks=["click"])
    >>> monitor.update({"click": SoftmaxRouter(8, 3)(torch.zeros(5, 8))})
    >>> monitor.read().rows
    (5.0,)
    """

    sums: Tensor
    outputs: Tensor

    def __init__(
        self,
        num_experts: int,
        tasks: Sequence[str] = ("all",),
        *,
        owners: Sequence[str | None] | None = None,
        visible: Sequence[Sequence[bool]] | None = None,
        name: str = "experts",
        sample_rows: int = 256,
    ) -> None:
        """Prepare the buffers.

        Args:
            num_experts: E.
            tasks: The gates that mix these experts, T.
            owners: For each expert the task whose own it is, None for a shared one (CGC, PLE); all
                are shared if None.
            visible: (T, E), which experts a gate may use; if None, the shared ones and its own.
            name: What logs and warnings call the bank.
            sample_rows: The most rows on which outputs are looked at.

        Raises:
            RequestError: Sizes that do not agree, or an owner that is no task.
        """
        super().__init__()
        owners = (None,) * num_experts if owners is None else tuple(owners)
        if not tasks or len(owners) != num_experts or not {*owners} <= {None, *tasks}:
            raise RequestError(
                "monitor.owners", wanted=f"{num_experts} of {(*tasks, None)}", got=repr(owners)
            )
        if visible is None:
            visible = [[owner in (None, task) for owner in owners] for task in tasks]
        if [len(row) for row in visible] != [num_experts] * len(tasks):
            raise RequestError(
                "monitor.visible", wanted=f"{len(tasks)} x {num_experts}", got=repr(visible)
            )
        self.name, self.tasks, self.owners, self.sample_rows = (
            name,
            tuple(tasks),
            owners,
            sample_rows,
        )
        self.visible = tuple(tuple(map(bool, row)) for row in visible)
        self.num_experts, self.watched = num_experts, False
        zeros = torch.zeros(len(tasks), 1 + 3 * num_experts, dtype=torch.float64)
        self.register_buffer("sums", zeros)
        self.register_buffer("outputs", torch.zeros(2 + num_experts, num_experts))

    @torch.no_grad()
    def update(self, routings: Mapping[str, Routing], mask_N: Tensor | None = None) -> None:
        """Add one batch.

        Args:
            routings: Each task's routing, all over the same experts.
            mask_N: bool, the rows that count; None for all.
        """
        self.sums += torch.stack([_sums(routings[task], mask_N) for task in self.tasks])

    @torch.no_grad()
    def watch(self, bank: nn.Module, x_ND: Tensor) -> None:
        """Look at all experts' outputs on the first rows of a batch, without dropout."""
        training = bank.training
        bank.eval()
        self.observe(bank(x_ND[: self.sample_rows]))
        bank.train(training)

    @torch.no_grad()
    def observe(self, h_NEO: Tensor) -> None:
        """Keep what outputs say of their experts: zeros, scale and similarity; the last call's."""
        h_NEO = h_NEO[: self.sample_rows].float()
        zero_E = (h_NEO == 0).float().mean((0, 2))
        scale_E = h_NEO.square().mean((0, 2)).sqrt()
        centred_EX = (h_NEO - h_NEO.mean(0)).transpose(0, 1).flatten(1)
        unit_EX = centred_EX / centred_EX.norm(dim=1, keepdim=True).clamp(min=1e-12)
        self.outputs.copy_(torch.cat([zero_E[None], scale_E[None], unit_EX @ unit_EX.T]))
        self.watched = True

    @torch.no_grad()
    def read(self, *, group: dist.ProcessGroup | None = None) -> Health:
        """Return the interval's numbers and begin a new interval.

        Args:
            group: Processes whose rows count too, all of which must call; None for this one only.
        """
        flat = torch.cat([self.sums.flatten(), self.outputs.double().flatten()])
        if group is not None:
            dist.all_reduce(flat, group=group)
            flat[self.sums.numel() :] /= dist.get_world_size(group)
        numbers = flat.tolist()  # the one transfer
        num, width = self.num_experts, self.sums.shape[1]
        sums = [numbers[t * width : (t + 1) * width] for t in range(len(self.tasks))]
        seen = numbers[self.sums.numel() :]
        rows = [tuple(seen[start : start + num]) for start in range(0, len(seen), num)]
        health = Health(
            name=self.name,
            tasks=self.tasks,
            owners=self.owners,
            visible=self.visible,
            rows=tuple(row[0] for row in sums),
            counts=tuple(tuple(row[1 : 1 + num]) for row in sums),
            mass=tuple(tuple(row[1 + num : 1 + 2 * num]) for row in sums),
            probs=tuple(tuple(row[1 + 2 * num :]) for row in sums),
            zero_share=rows[0] if self.watched else None,
            scale=rows[1] if self.watched else None,
            similarity=tuple(rows[2:]) if self.watched else None,
        )
        self.sums.zero_()
        self.watched = False
        return health


def _sums(routing: Routing, mask_N: Tensor | None) -> Tensor:
    """Return rows, and by expert the slots, the weights and the probabilities, (1 + 3 E,)."""
    weights, probs_NE, index_NK = routing.weights, routing.probs, routing.index
    kept = routing.kept
    if mask_N is None:
        rows_1 = weights.new_full((1,), weights.shape[0])
    else:
        hidden_N1 = ~mask_N.unsqueeze(-1)
        rows_1 = mask_N.sum().to(weights.dtype).unsqueeze(0)
        weights, probs_NE = weights.masked_fill(hidden_N1, 0), probs_NE.masked_fill(hidden_N1, 0)
        kept = mask_N.unsqueeze(-1).expand_as(weights) if kept is None else kept & ~hidden_N1
    prob_E = probs_NE.sum(0)
    if index_NK is None:
        mass_E = weights.sum(0)
        return torch.cat([rows_1, mass_E, mass_E, prob_E])
    used_NK = torch.ones_like(weights) if kept is None else kept.to(weights.dtype)
    both_2M = torch.stack([used_NK, weights]).flatten(1)
    index_2M = index_NK.flatten().expand(2, -1)
    both_2E = weights.new_zeros(2, probs_NE.shape[-1]).scatter_add(1, index_2M, both_2M)
    return torch.cat([rows_1, both_2E.flatten(), prob_E])
