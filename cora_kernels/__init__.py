"""y_i = x_i·Wᵀ + s·(x_i·A_i)·B_i + bias with live, differentiable A and B per sample: the op and its backends.

Beside it, attention within the samples of a packed batch."""

import cora_kernels.waiting  # noqa: F401  Before anything imports torch.

# isort: split
from cora_kernels.attention import packed_attention
from cora_kernels.dispatch import backends, use_backend
from cora_kernels.explain import explain
from cora_kernels.functional import lora_linear, lora_linear_group

__all__ = ["backends", "explain", "lora_linear", "lora_linear_group", "packed_attention", "use_backend"]
