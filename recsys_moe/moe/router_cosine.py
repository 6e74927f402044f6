r"""Cosine scores on a sphere, with a temperature that is learnt.

Shapes: N rows, D input width, R width of the sphere, E experts, K slots of a row.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_moe.errors import RequestError
from recsys_moe.moe.router_base import Router, check_k, full_linear
from recsys_moe.moe.router_top_k import top_k_routing
from recsys_moe.moe.routing import Routing


class CosineRouter(Router):
    r"""Compare a projected row with one direction per expert (X-MoE; Chi et al., 2022).

    .. math:: l_e = \cos(P x, v_e) / \tau, \qquad \tau = \tau_{\min} + e^{t}

    Logits stay within :math:`\pm 1/\tau`, whatever the length of a row. The temperature has a floor
    that it approaches without ever losing its gradient. With a k there is Switch's balance loss, as
    in the paper.

    Attributes:
        no_weight_decay: The parameter t: decay would pull the temperature to its floor plus one.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("log_temperature",)

    fixed_because = "its logits are bounded, so that an added expert cannot start out small"

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        sphere_width: int,
        k: int | None = None,
        renormalise: bool = True,
        temperature: float = 0.07,
        lowest_temperature: float = 0.01,
        visible: Sequence[bool] | None = None,
    ) -> None:
        """Initialise the projection as `nn.Linear`, directions evenly on the sphere.

        Args:
            width: Width of a row, D.
            num_experts: Experts in all, E.
            sphere_width: Width of the space of comparison, R (the paper has half of E).
            k: Experts of a row, K; None for all.
            renormalise: Whether a row's K weights sum to one.
            temperature: Where the temperature starts.
            lowest_temperature: What it cannot fall below.
            visible: Which experts the router may choose, one bool an expert; None for all.

        Raises:
            RequestError: A k that cannot be had, k = 1 with `renormalise`, a width below 1, or a
                temperature that does not start above its floor.
        """
        super().__init__(width, num_experts, visible=visible)
        if sphere_width < 1:
            raise RequestError("sphere_width", wanted="at least 1", got=f"{sphere_width}")
        if not 0 < lowest_temperature < temperature:
            raise RequestError(
                "temperature",
                wanted=f"more than lowest_temperature {lowest_temperature}, itself above 0",
                got=f"{temperature}",
            )
        if k is not None:
            check_k(k, self.num_visible, renormalise=renormalise)
        self.k, self.renormalise, self.lowest_temperature = k, renormalise, lowest_temperature
        self.balance = {} if k is None else {"switch": 0.01}
        self.projection = nn.Linear(width, sphere_width, bias=False)
        self.directions_ER = nn.Parameter(
            F.normalize(torch.randn(num_experts, sphere_width), dim=-1)
        )
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(temperature - lowest_temperature))
        )

    def route(self, x_ND: Tensor) -> Routing:
        """Return a routing, sparse (N, K) where there is a k, else dense (N, E)."""
        p_NR = F.normalize(full_linear(self.projection, x_ND), dim=-1)
        v_ER = F.normalize(self.directions_ER.to(p_NR.dtype), dim=-1)
        tau = self.lowest_temperature + self.log_temperature.to(p_NR.dtype).exp()
        logits_NE = self.hide(p_NR @ v_ER.T / tau)
        if self.k is not None:
            return top_k_routing(logits_NE, self.k, renormalise=self.renormalise)
        w_NE = logits_NE.softmax(-1)
        return Routing(weights=w_NE, index=None, probs=w_NE, logits=logits_NE)
