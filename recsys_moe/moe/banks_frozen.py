r"""A fitted model or a rule as an expert: its ONNX graph, run by ONNX Runtime, never trained.

Shapes: N rows, R rows sorted by expert, C rows an expert, M columns that it reads, P outputs,
U bytes of its file.
"""

import hashlib

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from recsys_moe.errors import RequestError
from recsys_moe.frozen.expert_file import INPUT, RUN_ERRORS, ExpertFile, open_expert
from recsys_moe.moe.banks import Bank

PLACEHOLDER_DOMAIN, PLACEHOLDER = "recsys_moe.frozen", "Expert"
"""The node that stands for an expert in an export, until its graph takes the place."""


class FrozenBank(Bank):
    r"""One expert without parameters: the standardised outputs of an ONNX graph.

    .. math:: f(x) = (g(x) - \mu) / \sigma

    with :math:`g` the graph and :math:`\mu, \sigma` the mean and spread of its outputs over the
    rows that it was frozen with, so that it enters a mixture on the scale of its neighbours, whose
    outputs are around 1, whatever it counts in. The graph is a buffer: a checkpoint has all of it.

    Rows are computed on the CPU, wherever they lie, in float32 whatever autocast says, and nothing
    flows back through them.
    """

    def __init__(
        self, expert: ExpertFile, *, standardize: bool = True, dropout: float = 0.0
    ) -> None:
        """Take an expert out of its file.

        Args:
            expert: From `frozen.expert_file.read_expert`.
            standardize: Whether outputs are standardised; else they are the graph's own.
            dropout: The share of the rows from which training hides the expert: its outputs there
                are 0, their mean. An expert that is good from the first step on else keeps the
                networks beside it from learning (ModDrop; Neverova et al., 2015, section 3.3).
        """
        super().__init__(1, expert.input_width, expert.output_width)
        self.dropout = dropout
        self.name = expert.name
        graph_U = np.frombuffer(expert.content, np.uint8).copy()
        self.register_buffer("graph_U", torch.from_numpy(graph_U))
        means = expert.means if standardize else [0.0] * expert.output_width
        spreads = expert.spreads if standardize else [1.0] * expert.output_width
        self.register_buffer("mean_P", torch.tensor(means))
        self.register_buffer("scale_P", 1 / torch.tensor(spreads))
        self.digest = hashlib.sha256(expert.content).hexdigest()
        """SHA-256 of the graph's file, kept beside it as an export cannot read the buffer."""
        self.register_load_state_dict_post_hook(_name_again)  # type: ignore[no-untyped-call]

    flops_per_row = 0
    """It has no products; what a tree costs is not counted in them."""

    @property
    def content(self) -> bytes:
        """The bytes of the graph's file."""
        return self.get_buffer("graph_U").cpu().numpy().tobytes()

    def forward(self, x_NM: Tensor) -> Tensor:
        """Return the expert's outputs on every row, (N, 1, P)."""
        return self._standardized(x_NM).unsqueeze(1)

    def batched(self, x_1CM: Tensor) -> Tensor:
        """Return the expert's outputs on its rows, (1, C, P)."""
        return self._standardized(x_1CM.squeeze(0)).unsqueeze(0)

    def until(self, rows_RM: Tensor, ends_E: Tensor, *, how: str = "auto") -> Tensor:
        """Return its outputs on all rows, (R, P), its own and those behind them."""
        return self._standardized(rows_RM)

    def settings(self) -> tuple[object, ...]:
        """Return which expert it is."""
        return (self.digest,)

    def append(self, other: Bank) -> Bank:
        """Refuse: each frozen expert is a bank of its own, side by side in a `HeteroBank`."""
        raise RequestError("append", wanted="a HeteroBank of both", got="a frozen expert")

    def _standardized(self, x_NM: Tensor) -> Tensor:
        rows_NM = x_NM.detach().float()
        if torch.onnx.is_in_onnx_export():
            y_NP = torch.onnx.ops.symbolic(
                f"{PLACEHOLDER_DOMAIN}::{PLACEHOLDER}",
                (rows_NM,),
                {"digest": self.digest},
                dtype=torch.float32,
                shape=(x_NM.shape[0], self.output_width),
                version=1,
            )
        else:
            y_NP = run_graph(rows_NM, self.get_buffer("graph_U"), self.output_width)
        y_NP = (y_NP - self.get_buffer("mean_P")) * self.get_buffer("scale_P")
        if not self.training or not self.dropout:
            return y_NP
        hidden_N1 = torch.rand_like(y_NP[:, :1]) < self.dropout
        return y_NP.masked_fill(hidden_N1, 0)


def _name_again(bank: nn.Module, missing: object) -> None:
    """Keep the digest true when a checkpoint brings another graph."""
    assert isinstance(bank, FrozenBank)
    bank.digest = hashlib.sha256(bank.content).hexdigest()


@torch.library.custom_op("recsys_moe::frozen_expert", mutates_args=())
def run_graph(rows_NM: Tensor, graph_U: Tensor, output_width: int) -> Tensor:
    """Return an ONNX graph's outputs on some rows, float32 (N, P) on their device."""
    if len(rows_NM) == 0:
        return rows_NM.new_zeros((0, output_width), dtype=torch.float32)
    feeds = {INPUT: rows_NM.cpu().contiguous().numpy()}
    try:
        (values_NP,) = _session(graph_U).run(None, feeds)
    except RUN_ERRORS as error:
        got = str(error).splitlines()[0]
        raise RequestError("frozen expert", wanted="outputs", got=got) from None
    if values_NP.shape != (len(rows_NM), output_width) or not np.isfinite(values_NP).all():
        wanted = f"finite outputs [{len(rows_NM)}, {output_width}]"
        finite = np.isfinite(values_NP).all()
        got = f"{list(values_NP.shape)}" if finite else "some that are not finite"
        raise RequestError("frozen expert", wanted=wanted, got=got)
    return torch.from_numpy(values_NP).to(rows_NM.device)


@run_graph.register_fake
def _(rows_NM: Tensor, graph_U: Tensor, output_width: int) -> Tensor:
    return rows_NM.new_empty((rows_NM.shape[0], output_width), dtype=torch.float32)


_SESSIONS = WeakTensorKeyDictionary()
"""By buffer: which state of it was opened, and the session. Loading a checkpoint makes another."""


def _session(graph_U: Tensor) -> onnxruntime.InferenceSession:
    version = 0 if graph_U.is_inference() else graph_U._version
    known = _SESSIONS.get(graph_U)  # type: ignore[no-untyped-call]
    if known is None or known[0] != version:
        known = version, open_expert(graph_U.cpu().numpy().tobytes())
        _SESSIONS[graph_U] = known
    session: onnxruntime.InferenceSession = known[1]
    return session
