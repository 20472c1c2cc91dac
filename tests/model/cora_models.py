"""CoRA models of tiny random language models, for the tests of what must hold of them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cora import CoRAModel
from cora.generators.shared_p import SharedP

USERS, ITEMS = torch.tensor([30, 10, 20, 10, 40]), torch.tensor([7, 5, 5, 6, 7])
YES, NO = 11, 23
Build = Callable[..., CoRAModel]
GENERATORS = pytest.mark.parametrize("kind", ["mlp", "per_layer", "gated"])


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """Every P, and every B that is mixed."""
    shared = [p for module in model.modules() if isinstance(module, SharedP) for p in module.parameters()]
    return shared + [p for name, p in model.named_parameters() if "lora_bs" in name]


def full_logits(base: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return base(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
