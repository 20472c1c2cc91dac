"""python -m cora.examples.hypernetwork: a hypernetwork of one's own on lora_linear, in plain torch.

Every sample has a context, and its own linear map W + A*(context)·B* that nobody is told. A small network learns to
make A of the context, and B is learned with it: y_i = x_i·Wᵀ + (x_i·A_i)·B. W stays as it is.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cora_kernels import lora_linear

BATCH, POSITIONS, WIDTH, OUT, RANK, CONTEXT = 32, 16, 64, 48, 4, 8


class Hypernetwork(nn.Module):
    """context [B, CONTEXT] -> lora_a [B, WIDTH, RANK], and the lora_b [RANK, OUT] that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(CONTEXT, 64), nn.GELU(), nn.Linear(64, WIDTH * RANK))
        self.lora_b = nn.Parameter(torch.zeros(RANK, OUT))  # zero: it starts as the frozen map

    def forward(self, context: Tensor) -> Tensor:
        made: Tensor = self.layers(context)
        return made.view(-1, WIDTH, RANK)


def main(steps: int = 600) -> tuple[float, float]:
    """Trains it; returns the mean squared error of the frozen map, and of the adapted one at the end."""
    torch.manual_seed(0)
    weight = torch.randn(OUT, WIDTH) / WIDTH**0.5
    hidden_a, hidden_b = torch.randn(CONTEXT, WIDTH, RANK) / (CONTEXT * WIDTH) ** 0.5, torch.randn(RANK, OUT)

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        context, x = torch.randn(BATCH, CONTEXT), torch.randn(BATCH, POSITIONS, WIDTH)
        return context, x, x @ weight.T + x @ torch.einsum("bc,ckr->bkr", context, hidden_a) @ hidden_b

    hypernetwork = Hypernetwork()
    optimizer = torch.optim.Adam(hypernetwork.parameters(), lr=3e-3)
    for step in range(steps):
        context, x, y = draw()
        loss = functional.mse_loss(lora_linear(x, weight, hypernetwork(context), hypernetwork.lora_b), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step:4d}  error {loss.item():.4f}")
    context, x, y = draw()
    frozen = functional.mse_loss(x @ weight.T, y).item()
    with torch.no_grad():
        adapted = functional.mse_loss(lora_linear(x, weight, hypernetwork(context), hypernetwork.lora_b), y).item()
    print(f"new contexts: error {frozen:.4f} frozen, {adapted:.4f} with A made of the context")
    return frozen, adapted


if __name__ == "__main__":
    main()
