r"""What all routers share: full precision, experts out of sight, ties and masks.

Shapes: N rows, D input width, E experts, K slots of a row.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from recsys_moe.errors import RequestError
from recsys_moe.moe.routing import Routing

_MOST_PASSES = 8  # one argmax an expert is faster than a sort up to here, on a CPU


class Router(nn.Module):
    """Choose and weigh experts row by row; a kind of router defines `route`.

    Inside, everything is float32 or wider, under autocast too. A masked row is sent nowhere: its
    weights are 0. Ties go to the expert with the lower number, in torch and in ONNX.

    Attributes:
        exportable: Whether a row's routing depends on that row alone, so that a graph may hold it.
        not_exportable_because: The reason, where it is not.
        mixes: Whether `mix(x_ND, bank, mask_N)` returns the mixture (N, O) and the routing, and is
            the way to compute it; else a routing and a bank are all there is to combine.
        blends: Whether experts see blends of rows, so that `mix` is the only way to compute it.
        fixed_because: Why its experts cannot become more or fewer; nothing where they can.
        balance: The losses that a training adds unless told otherwise, by name with coefficients
            (`BalanceLosses`); none where a gate is dense or balanced by other means.
        visible: bool (E,), the experts that this router may choose; None for all.
    """

    exportable: ClassVar[bool] = True
    not_exportable_because: ClassVar[str] = ""
    mixes: ClassVar[bool] = False
    blends: ClassVar[bool] = False
    fixed_because: ClassVar[str] = "its scores are not one linear map"
    balance: Mapping[str, float] = {}
    visible: Tensor | None

    def __init__(
        self, width: int, num_experts: int, *, visible: Sequence[bool] | None = None
    ) -> None:
        """Remember the sizes.

        Args:
            width: Width of a row, D.
            num_experts: Experts in all, E, visible or not.
            visible: Which of them the router may choose, one bool an expert; None for all.

        Raises:
            RequestError: No expert, no input, or a `visible` that hides all or has another length.
        """
        super().__init__()
        if width < 1 or num_experts < 1:
            raise RequestError(
                "router",
                wanted="a width and a number of experts of at least 1",
                got=f"width {width} and {num_experts} experts",
            )
        if visible is not None and (len(visible) != num_experts or not any(visible)):
            raise RequestError(
                "visible", wanted=f"{num_experts} bools, one of them true", got=f"{list(visible)}"
            )
        self.width, self.num_experts = width, num_experts
        self.num_visible = num_experts if visible is None else sum(map(bool, visible))
        shown = None if visible is None else torch.tensor([bool(v) for v in visible])
        self.register_buffer("visible", shown, persistent=False)

    def forward(self, x_ND: Tensor, mask_N: Tensor | None = None) -> Routing:
        """Route rows (N, D) of any float type; bool (N,) `mask_N` is false at rows to leave out."""
        with torch.autocast(device_kind(x_ND), enabled=False):
            routing = self.route(wide(x_ND))
            return routing if mask_N is None else routing.masked(mask_N)

    def route(self, x_ND: Tensor) -> Routing:
        """Route rows that are float32 or wider, autocast off."""
        raise NotImplementedError

    def mix(self, x_ND: Tensor, bank: Any, mask_N: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Return the mixture (N, O) and the routing; only routers that mix themselves do."""
        raise NotImplementedError

    def grow(self, num_experts: int, *, is_open: bool = True) -> None:
        """Add experts; only routers whose logits are one linear map can."""
        raise cannot_change(self, self.fixed_because)

    def keep(self, experts: Sequence[int]) -> None:
        """Forget all experts but these; only routers whose logits are one linear map can."""
        raise cannot_change(self, self.fixed_because)

    def hide(self, scores_NE: Tensor) -> Tensor:
        """Return scores with -inf at the experts out of sight."""
        if self.visible is None:
            return scores_NE
        return scores_NE.masked_fill(~self.visible, -torch.inf)


class LinearRouter(Router):
    r"""A router whose logits are :math:`l = (W x + b) / \tau`, with a constant temperature.

    Experts that are added later have a map of their own beside W, so that W stays what it is.
    """

    fixed_because: ClassVar[str] = ""

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        bias: bool,
        temperature: float,
        visible: Sequence[bool] | None,
    ) -> None:
        super().__init__(width, num_experts, visible=visible)
        if not temperature > 0:
            raise RequestError("temperature", wanted="more than 0", got=f"{temperature}")
        self.linear, self.temperature = nn.Linear(width, num_experts, bias=bias), temperature
        self.added = nn.ModuleList()
        self.num_open = 0

    def logits(self, x_ND: Tensor) -> Tensor:
        """Return the logits, (N, E), -inf at experts out of sight."""
        l_NE = full_linear(self.linear, x_ND)
        if self.num_open:
            more = [full_linear(linear, x_ND) for linear in self.opened()]
            l_NE = torch.cat([l_NE, *more], dim=-1)
        return self.hide(l_NE / self.temperature)

    def opened(self) -> Sequence[nn.Linear]:
        """Return the maps of the added experts that count."""
        return cast(Sequence[nn.Linear], list(self.added)[: self.num_open])

    def grow(self, num_experts: int, *, is_open: bool = True) -> None:
        """Add experts after those there are, with a linear map of their own, bias included.

        Args:
            num_experts: How many.
            is_open: Whether they count; else the map is only kept, and routes nothing.

        Raises:
            RequestError: A kind of router whose experts are given once, or some are out of sight.
        """
        self._check_free()
        self.added.append(nn.Linear(self.width, num_experts))
        if is_open:
            self.num_open += 1
            self._resized(self.num_experts + num_experts)

    def keep(self, experts: Sequence[int]) -> None:
        """Forget all experts but these, numbered anew in their order.

        Raises:
            RequestError: As `grow`, or fewer experts than a row uses.
        """
        self._check_free()
        closed, first, kept = list(self.added)[self.num_open :], 0, []
        for linear in [self.linear, *self.opened()]:
            rows = [e - first for e in experts if first <= e < first + linear.out_features]
            first += linear.out_features
            kept.append(_rows(linear, rows))
        self.linear, added = kept[0], [linear for linear in kept[1:] if linear.out_features]
        self.added, self.num_open = nn.ModuleList([*added, *closed]), len(added)
        self._resized(len(experts))

    def _resized(self, num_experts: int) -> None:
        """Take note of another number of experts."""
        self.num_experts = self.num_visible = num_experts

    def _check_free(self) -> None:
        reason = self.fixed_because or ("some are out of sight" if self.visible is not None else "")
        if reason:
            raise cannot_change(self, reason)


def cannot_change(router: Router, reason: str) -> RequestError:
    """Return what to say of a router whose experts cannot become more or fewer."""
    return RequestError(
        "router",
        wanted="one whose experts can become more or fewer (softmax, top_k, switch, top_p, "
        "sigmoid)",
        got=f"{type(router).__name__}: {reason}",
    )


def _rows(linear: nn.Linear, rows: Sequence[int]) -> nn.Linear:
    """Return a linear map to some of the outputs."""
    new = copy.copy(linear)
    new._parameters = {
        name: None if p is None else nn.Parameter(p.detach()[list(rows)], p.requires_grad)
        for name, p in linear._parameters.items()
    }
    new.out_features = len(rows)
    return new


def device_kind(x: Tensor) -> str:
    """Return the kind of device whose autocast applies to a tensor."""
    return "cpu" if x.is_meta else x.device.type


def wide(x: Tensor) -> Tensor:
    """Return a tensor as float32, or as it is where it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_linear(layer: nn.Linear, x_ND: Tensor) -> Tensor:
    """Return a linear layer's output in the widest of its own type, the input's and float32."""
    kind = torch.promote_types(torch.promote_types(x_ND.dtype, layer.weight.dtype), torch.float32)
    bias = None if layer.bias is None else layer.bias.to(kind)
    return nn.functional.linear(x_ND.to(kind), layer.weight.to(kind), bias)


def first_largest(scores_NE: Tensor, k: int) -> Tensor:
    """Return the k largest of the last axis, largest first and ties by position, int64 (N, K).

    `torch.topk` breaks ties as it likes. ONNX TopK takes the lower index, so exported graphs may
    have it; there is no ONNX for a stable sort.
    """
    scores_NE = scores_NE.detach()
    if torch.compiler.is_exporting():
        return torch.topk(scores_NE, k, dim=-1).indices
    if k > _MOST_PASSES or 2 * k > scores_NE.shape[-1]:
        order_NE = torch.sort(scores_NE, dim=-1, descending=True, stable=True).indices
        return order_NE[..., :k]
    found: list[Tensor] = []
    for _ in range(k):
        if found:
            scores_NE = scores_NE.scatter(-1, found[-1], -torch.inf)
        found.append(scores_NE.argmax(-1, keepdim=True))
    return torch.cat(found, dim=-1)


def check_k(k: int, num_visible: int, *, renormalise: bool, name: str = "k") -> None:
    """Refuse a k that cannot be had, and the one that would leave a router nothing to learn.

    Raises:
        RequestError: No whole number from 1 to the visible experts, or one expert with weights that
            sum to one.
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= num_visible:
        raise RequestError(
            name, wanted=f"1 to {num_visible}, the experts that the router sees", got=f"{k}"
        )
    if k == 1 and renormalise:
        raise RequestError(
            name,
            wanted="at least 2, or renormalise=false: the weight of a single renormalised expert "
            "is 1 whatever its logit, so that the router gets no gradient",
            got="1",
        )
