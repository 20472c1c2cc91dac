"""Prompts packed one after another through a Hugging Face model, without padding: attention stays within each."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cora_kernels import packed_attention
from cora_kernels.attention import attention_not_supported_reason

# Architectures that mix tokens in attention alone, a plain causal softmax: those that the tests pack.
_ARCHITECTURES = ("gemma", "gpt2", "granite", "llama", "mistral", "phi", "qwen2", "qwen3")
_ATTENTION = "cora_packed"


class Packing:
    """The attention of `base`, replaced by one that also serves packed prompts, until `remove`.

    Without cu_seq_lens_q, transformers' name of cu_seqlens, it is "sdpa", which it replaces. Models of other
    architectures or with another attention are left as they are, and never packed.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self.base = base
        config = base.config
        causal = getattr(config, "is_causal", True) and not getattr(config, "use_bidirectional_attention", False)
        self._replaced = causal and config.model_type in _ARCHITECTURES and config._attn_implementation == "sdpa"
        if self._replaced:
            AttentionInterface.register(_ATTENTION, _attention)
            AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
            base.set_attn_implementation(_ATTENTION)

    def serves(self, attention_mask: Tensor) -> bool:
        """Whether these prompts can be packed, and are faster so: where there is a kernel."""
        config = self.base.config
        window = getattr(config, "sliding_window", None)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        drops = self.base.training and any(getattr(config, name, 0) for name in ("attention_dropout", "attn_pdrop"))
        return (
            self._replaced
            and not drops
            and len(attention_mask) > 0
            # How many tokens are no padding is data: torch.compile would make a graph for every number.
            and not torch.compiler.is_compiling()
            and attention_not_supported_reason(self.base.dtype, self.base.device, width) is None
            and (window is None or int(attention_mask.sum(1).max()) <= window)
        )

    def remove(self) -> None:
        if self._replaced:
            self.base.set_attn_implementation("sdpa")
            self._replaced = False


def packed_arguments(position_ids: Tensor, cu_seqlens: Tensor, parents: Tensor | None) -> dict[str, Any]:
    """What a packed forward is given besides its tokens. parents: as for packed_attention."""
    # A mask of four dimensions is taken as it is: so none is made, and the attention here does not read it.
    no_mask = torch.empty(1, 1, 1, 1, device=position_ids.device)
    # The attention gets the last two by these names, which no model reads.
    return {
        "position_ids": position_ids,
        "attention_mask": no_mask,
        "cu_seq_lens_q": cu_seqlens,
        "cora_parents": parents,
    }


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    cora_parents: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))  # [1, heads, M, D] -> [M, heads, D]
    return packed_attention(q, k, v, cu_seq_lens_q, parents=cora_parents, scale=scaling)[None], None
