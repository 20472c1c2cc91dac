"""The last step of the generators that make one A for all layers: features to one normalised lora_a a width."""

from torch import Tensor, nn
from torch.nn import functional

from cora.generators.generator import Linears
from cora.generators.shared_p import SharedP
from cora.llm.deltas import Delta


class LoRAHeads(nn.Module):
    """A_w = l2norm(Linear_w(z)).view(B, w, r) for every input width w, so ‖A_w‖_F = 1 for every sample; P shared.

    z [B, features] -> {linear name: Delta(A_w [B, w, r], P [r, N], scaling)}, one A_w for all linears of the input
    width w. Without the norm training diverges.
    """

    def __init__(self, features: int, linears: Linears, r: int, scaling: float) -> None:
        super().__init__()
        self.r = r
        self.widths = {name: linear.in_features for name, linear in linears.items()}
        self.linears = nn.ModuleDict(
            {str(width): nn.Linear(features, width * r) for width in sorted(set(self.widths.values()))}
        )
        self.p = SharedP(linears, r, scaling)

    def forward(self, z: Tensor) -> dict[str, Delta]:
        made = {
            int(width): functional.normalize(linear(z), dim=-1).view(-1, int(width), self.r)
            for width, linear in self.linears.items()
        }
        deltas: dict[str, Delta] = self.p({name: made[width] for name, width in self.widths.items()})
        return deltas
