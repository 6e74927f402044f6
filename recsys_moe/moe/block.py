r"""A mixture of experts as one layer: rows in, rows out.

Shapes: N rows (any leading dimensions), D input width, O output width.
"""

from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from recsys_moe.errors import RequestError
from recsys_moe.moe.banks import Bank
from recsys_moe.moe.banks_hetero import HeteroBank
from recsys_moe.moe.dispatch import FORMS, combine
from recsys_moe.moe.router_base import Router
from recsys_moe.moe.routing import Routing


class MoEBlock(nn.Module):
    r"""Route each row to some experts, and add what the shared experts make of it.

    .. math:: y = \sum_k w_k(x) \, f_{i_k(x)}(x) + \sum_s f_s(x)

    The routing comes back beside the output, for balance losses and for the eye: nothing is kept
    in the module and no loss is added inside. Routed and shared experts as in DeepSeek-V3
    (DeepSeek-AI, 2024, equation 12).

    >>> import torch
    >>> from recsys_moe.moe.banks_gated import SwiGLUBank
    >>> from recsys_moe.moe.router_top_k import TopKRouter
    >>> block = MoEBlock(TopKRouter(8, 4, 2), SwiGLUBank(4, 8, 16))
    >>> y, routing = block(torch.zeros(2, 5, 8))
    >>> y.shape, routing.index.shape
    (torch.Size([2, 5, 8]), torch.Size([10, 2]))
    """

    def __init__(
        self,
        router: Router,
        bank: Bank | HeteroBank,
        shared: Bank | HeteroBank | None = None,
        *,
        dispatch: str = "auto",
        capacity_factor: float = 1.25,
        checkpoint: bool = False,
    ) -> None:
        """Put the parts together.

        Args:
            router: Which experts see a row.
            bank: The routed experts.
            shared: Experts that see every row with weight one.
            dispatch: How the routed experts are computed: `auto`, `dense`, `split`, `grouped` or
                `capacity`; see `dispatch.combine`.
            capacity_factor: For `capacity` alone.
            checkpoint: Whether training keeps the rows alone and computes the experts again in
                the backward pass. The router stays outside, so that noise or a bias that has
                moved cannot send a row elsewhere the second time.

        Raises:
            RequestError: Parts that do not fit each other, or an unknown dispatch.
        """
        super().__init__()
        if router.num_experts != bank.num_experts:
            wanted = f"one for the bank's {bank.num_experts} experts"
            raise RequestError("router", wanted=wanted, got=f"one for {router.num_experts}")
        widths = bank.input_width, bank.output_width
        if shared is not None and (shared.input_width, shared.output_width) != widths:
            got = f"{shared.input_width} -> {shared.output_width}"
            raise RequestError("shared", wanted=f"widths {widths[0]} -> {widths[1]}", got=got)
        if dispatch not in ("auto", *FORMS):
            wanted = ", ".join(("auto", *FORMS))
            raise RequestError("dispatch", wanted=wanted, got=repr(dispatch), choices=FORMS)
        if router.mixes and (checkpoint or isinstance(bank, HeteroBank)):
            wanted = "checkpoint: false and a bank of one kind beside a router that mixes itself"
            got = "checkpoint: true" if checkpoint else "several kinds"
            raise RequestError("router", wanted=wanted, got=got)
        self.router, self.bank, self.shared = router, bank, shared
        self.dispatch, self.capacity_factor, self.checkpoint = dispatch, capacity_factor, checkpoint
        self.input_width, self.output_width = widths

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Return the output and the routing.

        Args:
            x: (…, D).
            mask: bool (…), the rows that are real; the others' routed part is 0. None for all.

        Returns:
            (…, O), and the routing of the N rows that the leading dimensions make.
        """
        x_ND = x.reshape(-1, x.shape[-1])
        mask_N = None if mask is None else mask.reshape(-1)
        if self.router.mixes:
            y_NO, routing = self.router.mix(x_ND, self.bank, mask_N)
        else:
            routing = self.router(x_ND, mask_N)
            y_NO = self._routed(x_ND, routing)
        if self.shared is not None:
            y_NO = y_NO + self.shared(x_ND).sum(1)
        return y_NO.view(*x.shape[:-1], self.output_width), routing

    def _routed(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """Return what the chosen experts make of the rows, (N, O)."""
        routed = partial(
            combine, bank=self.bank, how=self.dispatch, capacity_factor=self.capacity_factor
        )
        if self.checkpoint and self.training:
            y_NO: Tensor = recompute(routed, x_ND, routing, use_reentrant=False)
            return y_NO
        return routed(x_ND, routing)

    def extra_repr(self) -> str:
        """Return the settings for `repr`."""
        return f"dispatch={self.dispatch!r}, checkpoint={self.checkpoint}"
