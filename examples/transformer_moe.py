"""A mixture of experts dropped into a transformer: `MoEBlock` where the feed-forward layer was.

    python examples/transformer_moe.py [--steps 150]

Learns to copy: of each sequence the second half repeats the first. Prints the loss of the second
half, which falls from that of guessing, log(16) = 2.77, and how evenly the experts are used.

Shapes: B sequences, S tokens of each, D width, E experts.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_moe.modules import MoEBlock
from recsys_moe.moe.banks_gated import SwiGLUBank
from recsys_moe.moe.router_top_k import TopKRouter
from recsys_moe.moe.routing import Routing

VOCABULARY, LENGTH, WIDTH, HEADS, EXPERTS = 16, 8, 64, 4, 8


class Layer(nn.Module):
    """A pre-norm decoder layer whose feed-forward part is a mixture of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        router = TopKRouter(WIDTH, EXPERTS, k=2)
        self.experts = MoEBlock(router, SwiGLUBank(EXPERTS, WIDTH, 2 * WIDTH))

    def forward(self, x_BSD: Tensor, causal_SS: Tensor) -> tuple[Tensor, Routing]:
        """Return the tokens, and where each was sent."""
        h_BSD = self.norms[0](x_BSD)
        h_BSD, _ = self.attention(h_BSD, h_BSD, h_BSD, attn_mask=causal_SS, need_weights=False)
        x_BSD = x_BSD + h_BSD
        h_BSD, routing = self.experts(self.norms[1](x_BSD))
        return x_BSD + h_BSD, routing


class Transformer(nn.Module):
    """Two layers between an embedding and a projection to the next token's logits."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(2 * LENGTH, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, token_BS: Tensor) -> tuple[Tensor, list[Routing]]:
        """Return the logits (B, S, V) and each layer's routing."""
        length = token_BS.shape[1]
        x_BSD = self.tokens(token_BS) + self.places.weight[:length]
        causal_SS = torch.ones(length, length, dtype=torch.bool).triu(1)
        routings = []
        for layer in self.layers:
            x_BSD, routing = layer(x_BSD, causal_SS)
            routings.append(routing)
        return self.head(x_BSD), routings


def balance(routing: Routing) -> Tensor:
    """Return E times the sum of share of slots times mean probability: 1 when even (Switch)."""
    share_E = F.one_hot(routing.index, routing.num_experts).float().mean((0, 1))
    return routing.num_experts * (share_E * routing.probs.mean(0)).sum()


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(options.steps):
        half = torch.randint(VOCABULARY, (64, LENGTH))
        token_BS = torch.cat([half, half], dim=1)
        logits, routings = model(token_BS[:, :-1])
        guessed, wanted = logits[:, LENGTH - 1 :], token_BS[:, LENGTH:]
        loss = F.cross_entropy(guessed.flatten(0, 1), wanted.flatten())
        even = torch.stack([balance(routing) for routing in routings]).mean()
        optimizer.zero_grad()
        (loss + 0.01 * even).backward()
        optimizer.step()
        if step % 20 == 0 or step == options.steps - 1:
            print(f"step {step}: balance {even.item():.2f}, loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
