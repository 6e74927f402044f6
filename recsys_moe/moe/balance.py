r"""What keeps experts in use: losses that punish a router which prefers a few of them.

Every loss here is a scalar function of sums over rows. A mask leaves rows out of the sums, and a
process group makes them the sums of the global batch (arXiv 2501.11873): each process then gets the
same value, and the mean of their gradients, which is what DDP takes, is the gradient on the whole
batch. Experts that a router may not see (logits of -inf) do not count.

Shapes: N rows, E experts, K slots of a row.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from recsys_moe.errors import RequestError
from recsys_moe.moe.routing import Routing

_EPSILON = 1e-10


def load(
    routing: Routing, mask_N: Tensor | None = None, *, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Count the rows that each expert works on, without gradient.

    A row counts 1 for an expert that it uses; a dense gate, which uses all, gives each its weight.

    Args:
        routing: A router's decision for N rows.
        mask_N: bool, the rows that count; None for all.
        group: Processes whose rows count too; None for this one's only.

    Returns:
        (E,), which sums to the number of slots used.
    """
    with torch.no_grad():
        return _global_sum(_masked(_use(routing), mask_N).sum(0), group)


def importance_cv2(
    routing: Routing, mask_N: Tensor | None = None, *, group: dist.ProcessGroup | None = None
) -> Tensor:
    r"""Return the squared variation of the experts' gate mass (Shazeer et al. 2017, eq. 6 and 7).

    .. math:: \operatorname{CV}^2\Big(\sum_n G_{ne}\Big), \qquad
        \operatorname{CV}^2(v) = \operatorname{Var}_e(v) / (\operatorname{mean}_e(v)^2 + 10^{-10})

    with the population variance: 0 where all experts have the same mass, E - 1 where one has all.

    Args:
        routing: A router's decision for N rows.
        mask_N: bool, the rows that count; None for all.
        group: Processes whose rows count too; None for this one's only.
    """
    mass_E = _masked(routing.dense(), mask_N).sum(0)
    return _cv2(*_global_sums([mass_E, _seen(routing, mask_N)], group))


def load_cv2(
    routing: Routing, mask_N: Tensor | None = None, *, group: dist.ProcessGroup | None = None
) -> Tensor:
    r"""Return the squared variation of a smooth load of noisy top-k (Shazeer et al. 2017, App. A).

    .. math:: \operatorname{Load}_e = \sum_n P(n, e), \qquad P(n, e) =
        \Phi\left(\frac{c_{ne} - \operatorname{kth\_excluding}(h_n, K, e)}{\sigma_{ne}}\right)

    P is the chance that e is chosen when only its own noise is drawn anew: c are the clean logits,
    h the noisy ones, and kth_excluding is the K-th largest of h without e's (eq. 8 to 11).

    Args:
        routing: A decision of a noisy router in training: `clean` and `spread` are needed.
        mask_N: bool, the rows that count; None for all.
        group: Processes whose rows count too; None for this one's only.

    Raises:
        RequestError: For a routing without noise: its load has no gradient.
    """
    load_E = _masked(chance_of_choice(routing), mask_N).sum(0)
    return _cv2(*_global_sums([load_E, _seen(routing, mask_N)], group))


def chance_of_choice(routing: Routing) -> Tensor:
    """Return P(n, e) of `load_cv2`, (N, E).

    Raises:
        RequestError: For a routing without noise.
    """
    clean_NE, spread_NE = routing.clean, routing.spread
    if clean_NE is None or spread_NE is None or routing.index is None:
        raise RequestError(
            "balance loss 'load'", wanted="a noisy top-k router in training", got="no noise"
        )
    num_slots = routing.index.shape[-1]
    if num_slots == routing.num_experts:
        return torch.ones_like(clean_NE)
    top = routing.logits.topk(num_slots + 1, dim=-1)
    last_in_N1, first_out_N1 = top.values[:, -2:-1], top.values[:, -1:]
    among_NE = torch.zeros_like(clean_NE).scatter(-1, top.indices[:, :-1], 1.0) > 0
    bar_NE = torch.where(among_NE, first_out_N1, last_in_N1)
    seen_NE = routing.logits > -torch.inf  # -inf less -inf is no number, nor is its gradient
    gap_NE = torch.where(seen_NE, clean_NE, 0.0) - torch.where(bar_NE > -torch.inf, bar_NE, 0.0)
    chance_NE = torch.special.ndtr(gap_NE / torch.where(seen_NE, spread_NE, 1.0))
    return torch.where(seen_NE, torch.where(bar_NE > -torch.inf, chance_NE, 1.0), 0.0)


def switch_loss(
    routing: Routing,
    mask_N: Tensor | None = None,
    *,
    f_sums_to: Literal["one", "k"] = "one",
    load_E: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Return the auxiliary loss of GShard and Switch (Fedus et al. 2021, eq. 4 to 6).

    .. math:: E \sum_e f_e P_e

    with f the share of the work that goes to e, a constant, and P its mean probability. For k > 1
    there are two conventions: f sums to one (the share of all used slots), where balance is 1 and
    the collapse of k = 1 is E; or to k (the share of rows), where balance is k, as in the Mixtral
    of Hugging Face.

    Args:
        routing: A router's decision for N rows.
        mask_N: bool, the rows that count; None for all.
        f_sums_to: "one" or "k".
        load_E: What `load` gives for a larger batch, to take f from it: with gradient accumulation,
            the sum over the micro-batches of a step. None to take it from this batch.
        group: Processes whose rows count too; None for this one's only.

    Raises:
        RequestError: For another `f_sums_to`.
    """
    if f_sums_to not in ("one", "k"):
        raise RequestError(
            "f_sums_to", wanted="'one' or 'k'", got=repr(f_sums_to), choices=("one", "k")
        )
    prob_E = _masked(routing.probs, mask_N).sum(0)
    use_E = _masked(_use(routing), mask_N).sum(0).detach()
    rows = _num_rows(routing, mask_N)
    prob_E, seen_E, use_E, rows = _global_sums([prob_E, _seen(routing, mask_N), use_E, rows], group)
    rows = rows.clamp(min=1)
    work_E = use_E if load_E is None else load_E.to(use_E)
    slots = work_E.sum().clamp(min=1)
    # the slots of a row in the batch at hand, so that a larger batch's load changes only the shares
    per_row = 1.0 if f_sums_to == "one" else use_E.sum() / rows
    return (seen_E > 0).sum() * (work_E / slots * prob_E / rows).sum() * per_row


def z_loss(
    routing: Routing, mask_N: Tensor | None = None, *, group: dist.ProcessGroup | None = None
) -> Tensor:
    r"""Return what keeps logits small (ST-MoE: Zoph et al. 2022, eq. 5).

    .. math:: \frac{1}{N} \sum_n \Big(\log \sum_e \exp l_{ne}\Big)^2

    Args:
        routing: A router's decision for N rows.
        mask_N: bool, the rows that count; None for all.
        group: Processes whose rows count too; None for this one's only.
    """
    log_N = torch.logsumexp(_masked(routing.logits, mask_N), dim=-1)
    square_N = log_N.square() if mask_N is None else log_N.square().masked_fill(~mask_N, 0.0)
    total, rows = _global_sums([square_N.sum(), _num_rows(routing, mask_N)], group)
    return total / rows.clamp(min=1)


def _use(routing: Routing) -> Tensor:
    """Return what each expert gets of each row, (N, E): 1 if used; a dense gate's weight."""
    if routing.index is None:
        return routing.weights
    return routing.chosen().to(routing.probs.dtype)


def _seen(routing: Routing, mask_N: Tensor | None) -> Tensor:
    """Count the rows in which a router may see each expert, (E,)."""
    seen_NE = (routing.logits > -torch.inf).to(routing.probs.dtype)
    return _masked(seen_NE, mask_N).sum(0)


def _num_rows(routing: Routing, mask_N: Tensor | None) -> Tensor:
    if mask_N is None:
        return routing.probs.new_full((), routing.probs.shape[0])
    return mask_N.sum().to(routing.probs.dtype)


def _masked(x_NE: Tensor, mask_N: Tensor | None) -> Tensor:
    """Put 0 in the rows that do not count, whatever they hold."""
    return x_NE if mask_N is None else x_NE.masked_fill(~mask_N.unsqueeze(-1), 0.0)


def _cv2(x_E: Tensor, seen_E: Tensor) -> Tensor:
    seen_E = (seen_E > 0).to(x_E.dtype)
    count = seen_E.sum().clamp(min=1)
    mean = x_E.sum() / count
    return ((x_E - mean) * seen_E).square().sum() / count / (mean.square() + _EPSILON)


def _global_sums(parts: Sequence[Tensor], group: dist.ProcessGroup | None) -> list[Tensor]:
    """Add up several tensors over processes in one message."""
    if group is None:
        return list(parts)
    total = _global_sum(torch.cat([part.reshape(-1) for part in parts]), group)
    pieces = zip(torch.split(total, [part.numel() for part in parts]), parts, strict=True)
    return [piece.reshape(part.shape) for piece, part in pieces]


def _global_sum(part: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Add up a tensor over processes.

    The gradient of this process's part is multiplied by the number of processes, so that its mean
    over them is the gradient of the sum.
    """
    if group is None:
        return part
    total = part.detach().clone()
    dist.all_reduce(total, group=group)
    return total + dist.get_world_size(group) * (part - part.detach())
