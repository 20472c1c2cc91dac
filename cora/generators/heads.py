"""The last step of every generator: features to one normalised lora_a for every input width."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class LoRAHeads(nn.Module):
    """A_w = l2norm(Linear_w(z)).view(B, w, r) for every input width w, so ‖A_w‖_F = 1 for every sample.

    z [B, features] -> {w: A_w [B, w, r]}. Without the norm training diverges.
    """

    def __init__(self, features: int, widths: Sequence[int], r: int) -> None:
        super().__init__()
        self.r = r
        self.linears = nn.ModuleDict({str(width): nn.Linear(features, width * r) for width in widths})

    def forward(self, z: Tensor) -> dict[int, Tensor]:
        return {
            int(width): functional.normalize(linear(z), dim=-1).view(-1, int(width), self.r)
            for width, linear in self.linears.items()
        }
