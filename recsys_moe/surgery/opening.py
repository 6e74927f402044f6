r"""Gates of added experts that hardly use them at first.

Shapes: N rows, D input width, E experts.
"""

from collections.abc import Mapping
from functools import singledispatch

import torch
from torch import Tensor, nn

from recsys_moe.moe.router_base import LinearRouter, first_largest, wide
from recsys_moe.moe.router_sigmoid import SigmoidRouter
from recsys_moe.moe.router_softmax import SoftmaxRouter
from recsys_moe.moe.router_top_k import TopKRouter
from recsys_moe.moe.router_top_p import TopPRouter


def inputs_of_routers(
    model: nn.Module, codes_BS: Tensor, numbers_BK: Tensor
) -> Mapping[str, Tensor]:
    """Return what each router of a model reads for some rows, by the router's name."""
    found: dict[str, Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, LinearRouter):

            def note(_: nn.Module, arguments: tuple[Tensor, ...], name: str = name) -> None:
                found[name] = arguments[0].detach()

            hooks.append(module.register_forward_pre_hook(note))
    try:
        with torch.no_grad():
            model(codes_BS, numbers_BK)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@torch.no_grad()
def open_gently(router: LinearRouter, x_ND: Tensor, since: int, share: float) -> None:
    r"""Set the biases of added experts so that they begin with a share.

    A gate that weighs all experts gets the same logit b for each of the c added ones, whatever the
    row, with no row's added weight above the share s:

    .. math:: c \, e^b \le \frac{s}{1 - s} \min_n \sum_e e^{l_{ne}}

    A gate that chooses would never choose an expert with a low logit, and so never teach it. There
    each added expert keeps its random map and gets the bias with which it is among the chosen of
    s / c of the rows.

    Args:
        router: One with all its experts open.
        x_ND: Rows that it reads.
        since: The number of the addition that opens; later ones open with it.
        share: s.
    """
    added = router.opened()[since:]
    count = sum(linear.out_features for linear in added)
    shut = list(router.added)
    router.num_open = since
    threshold_N = entry(router, wide(x_ND))
    router.num_open = len(shut)
    for linear in added:
        if isinstance(router, SoftmaxRouter):
            linear.weight.zero_()
            odds = torch.tensor(share / (1 - share) / count)
            linear.bias.fill_(router.temperature * (threshold_N.min() + odds.log()))
            continue
        l_NE = wide(x_ND) @ linear.weight.T / router.temperature
        bias_E = torch.quantile(threshold_N.unsqueeze(1) - l_NE, share / count, dim=0)
        linear.bias.copy_(router.temperature * bias_E)


@singledispatch
def entry(router: LinearRouter, x_ND: Tensor) -> Tensor:
    """Return the logit above which one more expert would count in a row, (N,).

    Of a dense gate, the logit that would have half of the weight.
    """
    raise NotImplementedError(type(router).__name__)


@entry.register
def _(router: SoftmaxRouter, x_ND: Tensor) -> Tensor:
    return router.logits(x_ND).logsumexp(-1)


@entry.register
def _(router: TopKRouter, x_ND: Tensor) -> Tensor:
    logits_NE = router.logits(x_ND)
    return logits_NE.gather(-1, first_largest(logits_NE, router.k)).amin(-1)


@entry.register
def _(router: TopPRouter, x_ND: Tensor) -> Tensor:
    r"""Solve for the logit b whose expert is the last that the share p needs.

    With the others' logits sorted, :math:`l_1 \ge l_2 \dots`, a sum :math:`S` of their exponentials
    and :math:`c_k` that of the first k, an expert after k others counts from
    :math:`b_k = \max(l_{k+1}, \log(c_k / p - S))` on, if that is not above :math:`l_k`.
    """
    l_NE = router.logits(x_ND).sort(dim=-1, descending=True).values
    none_N1 = l_NE.new_full((len(l_NE), 1), torch.inf)
    above_NK = torch.cat([none_N1, l_NE], dim=1)[:, : router.max_experts]
    below_NK = torch.cat([l_NE, -none_N1], dim=1)[:, : router.max_experts]
    first_N1 = l_NE[:, :1]
    e_NE = (l_NE - first_N1).exp()
    total_N1, cumulated_NE = e_NE.sum(1, keepdim=True), e_NE.cumsum(1)
    sums_NK = torch.cat([torch.zeros_like(first_N1), cumulated_NE], dim=1)[:, : router.max_experts]
    needed_NK = (sums_NK / router.p - total_N1).clamp(min=0).log() + first_N1
    b_NK = torch.maximum(below_NK, needed_NK)
    return b_NK.masked_fill(b_NK > above_NK, torch.inf).amin(1)


@entry.register
def _(router: SigmoidRouter, x_ND: Tensor) -> Tensor:
    """The scores of the others include their selection bias; an added expert has none yet."""
    logits_NE = router.logits(x_ND)
    scores_NE = logits_NE.sigmoid() + router.biases()
    least_N = scores_NE.gather(-1, first_largest(scores_NE, router.k)).amin(-1)
    return least_N.clamp(1e-6, 1 - 1e-6).logit()
