"""Tiny random causal LMs of several architectures, prompts and embeddings for them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cora import CoRAConfig, CoRAModel
from cora.collaborative import CollaborativeEmbeddings
from tests.model.cora_models import NO, YES, Build, matrices

VOCABULARY = 101
SIZES: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
GPT2: dict[str, Any] = dict(
    vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=4, n_positions=64,
    bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES | dict(tie_word_embeddings=True),
    "gpt2": GPT2 | dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "mistral": SIZES | dict(sliding_window=8),
    "gemma": SIZES | dict(head_dim=16),
}
OTHERS: dict[str, dict[str, Any]] = {
    "gemma2": SIZES | dict(head_dim=16, final_logit_softcapping=5.0, sliding_window=8),
    "phi": SIZES | dict(resid_pdrop=0.0, embd_pdrop=0.0),
    "granite": SIZES | dict(logits_scaling=4.0),
    "smollm3": SIZES,
    "cohere": SIZES | dict(logit_scale=0.25),
    "qwen3": SIZES | dict(head_dim=16),
    "opt": SIZES | dict(ffn_dim=80, word_embed_proj_dim=48, dropout=0.0, attention_dropout=0.0),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_base() -> Callable[..., PreTrainedModel]:
    """make_base(architecture, dtype=torch.float32, **changes): a random model in eval mode, larger than the usual
    start."""

    def make(architecture: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
        sizes = (ARCHITECTURES | OTHERS)[architecture] | changes
        config = AutoConfig.for_model(architecture, **sizes)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Biases start at zero and weights so small that logits would hardly depend on the input.
                parameter.normal_(std=0.1) if name.endswith("bias") else parameter.mul_(4 if parameter.dim() > 1 else 1)
        return model.to(dtype).eval()

    return make


@pytest.fixture(params=ARCHITECTURES)
def base(request: pytest.FixtureRequest, make_base: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return make_base(request.param)


@pytest.fixture
def targets() -> Callable[[PreTrainedModel], tuple[str, ...]]:
    """The names of the attention projections of a model."""
    return lambda model: (
        ("c_attn", "attn.c_proj") if model.config.model_type == "gpt2" else ("q_proj", "k_proj", "v_proj", "o_proj")
    )


@pytest.fixture
def make_deltas() -> Callable[..., dict[str, tuple[Tensor, Tensor, float]]]:
    """make_deltas(patch, batch=B, r=4): random leaves with gradients for every patched linear; batch None for
    shared."""

    def make(
        patch: Any, batch: int | None, r: int = 4, scaling: float = 0.7
    ) -> dict[str, tuple[Tensor, Tensor, float]]:
        lead = () if batch is None else (batch,)
        return {
            name: (
                torch.randn(*lead, layer.in_features, r).mul_(0.1).requires_grad_(),
                torch.randn(*lead, r, layer.out_features).mul_(0.1).requires_grad_(),
                scaling,
            )
            for name, layer in patch.layers.items()
        }

    return make


@pytest.fixture
def prompts() -> tuple[Tensor, list[int]]:
    """Five prompts of random tokens [5, 9] and how many of them each has."""
    return torch.randint(3, VOCABULARY, (5, 9)), [9, 4, 7, 1, 9]


@pytest.fixture
def pad() -> Callable[[tuple[Tensor, list[int]], str], tuple[Tensor, Tensor]]:
    """pad(prompts, "left" or "right"): input_ids and attention_mask."""

    def padded(prompts: tuple[Tensor, list[int]], side: str) -> tuple[Tensor, Tensor]:
        tokens, lengths = prompts
        ids, mask = torch.zeros_like(tokens), torch.zeros_like(tokens)
        for row, length in enumerate(lengths):
            place = slice(tokens.shape[1] - length, None) if side == "left" else slice(0, length)
            ids[row, place] = tokens[row, :length]
            mask[row, place] = 1
        return ids, mask

    return padded


@pytest.fixture
def count_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of linears in each call of the op that the layers make."""
    from cora.llm import patched_linear

    calls: list[int] = []

    def counted(op: Callable[..., Any], size: Callable[[Any], int]) -> Callable[..., Any]:
        def call(x: Tensor, weights: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(size(weights))
            return op(x, weights, *args, **kwargs)

        return call

    monkeypatch.setattr(patched_linear, "lora_linear", counted(patched_linear.lora_linear, lambda weight: 1))
    monkeypatch.setattr(patched_linear, "lora_linear_group", counted(patched_linear.lora_linear_group, len))
    yield calls


@pytest.fixture
def kind() -> str:
    return "mlp"


@pytest.fixture
def build(targets: Any, kind: str) -> Build:
    """build(base, trained=True, **changes): a CoRAModel in eval mode; trained: with P away from zero."""

    def make(base: PreTrainedModel, trained: bool = True, **changes: Any) -> CoRAModel:
        torch.manual_seed(1)
        fields: dict[str, Any] = dict(
            r=3, target_modules=targets(base), generator=kind, hidden_size=16, user_dropout=0.0, answer_ids=(YES, NO)
        ) | dict(query_width=16, decoder_heads=2)
        embeddings = CollaborativeEmbeddings([10, 20, 30, 40], [5, 6, 7], 3 * torch.randn(4, 8) + 1, torch.randn(3, 8))
        model = CoRAModel(base, CoRAConfig(**(fields | changes)), embeddings)
        if trained:
            for matrix in matrices(model):
                nn.init.normal_(matrix, std=2.0)
        return model.eval()

    return make
