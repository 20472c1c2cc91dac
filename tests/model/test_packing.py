"""Packed prompts: the same scores and gradients as padded ones, on every architecture that is packed, and when not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import cora
import cora.llm.packing
from cora import CoRAConfig, CoRAModel
from cora.collaborative import CollaborativeEmbeddings
from cora.generators.shared_p import SharedP
from cora.llm.patched_linear import LoRALinear
from cora_kernels import backends, packed_attention, use_backend
from cora_kernels.backends import varlen_attention
from tests.model.agreement import assert_packed_is_chained

USERS, ITEMS = torch.tensor([30, 10, 20, 10, 40]), torch.tensor([7, 5, 5, 6, 7])
needs_kernel = pytest.mark.skipif(backends()["cpu"] is not None, reason=f"cpu: {backends()['cpu']}")


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """Every P."""
    return [p for module in model.modules() if isinstance(module, SharedP) for p in module.parameters()]


@pytest.fixture
def build(targets: Any) -> Callable[..., CoRAModel]:
    def make(base: PreTrainedModel) -> CoRAModel:
        embeddings = CollaborativeEmbeddings([10, 20, 30, 40], [5, 6, 7], torch.randn(4, 8), torch.randn(3, 8))
        names = ("q_proj", "v_proj") if base.config.model_type == "phi" else targets(base)
        config = CoRAConfig(r=3, target_modules=names, hidden_size=16, user_dropout=0.0, answer_ids=(11, 23))
        model = CoRAModel(base, config, embeddings)
        for matrix in matrices(model):
            nn.init.normal_(matrix, std=2.0)
        return model.eval()

    return make


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The cu_seqlens of every call of packed_attention."""
    seen: list[list[int]] = []
    op = cora.llm.packing.packed_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, **options: Any) -> Tensor:
        seen.append(cu_seqlens.tolist())
        return op(q, k, v, cu_seqlens, **options)

    monkeypatch.setattr(cora.llm.packing, "packed_attention", spy)
    return seen


@needs_kernel
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", cora.llm.packing._ARCHITECTURES)
def test_packed_is_padded(
    make_base: Any, build: Any, prompts: Any, pad: Any, calls: Any, architecture: str, side: str
) -> None:
    changes = dict(sliding_window=16) if architecture == "mistral" else {}
    model = build(make_base(architecture, **changes))
    labels = torch.tensor([1.0, 0, 0, 1, 1])
    assert_packed_is_chained(model, lambda: model(*pad(prompts, side), USERS, ITEMS, labels))
    assert calls == [[0, 9, 13, 20, 21, 30]] * 2, "one call for each layer, of the packed forward alone"


@needs_kernel
@torch.no_grad()
def test_scores_are_packed_batch_by_batch(make_base: Any, build: Any, prompts: Any, pad: Any, calls: Any) -> None:
    model = build(make_base("llama"))
    ids, mask = pad(prompts, "left")
    scores = model.score(ids, mask, USERS, ITEMS, batch_size=2)
    assert calls[::2] == [[0, 1, 5], [0, 7, 16], [0, 9]], "prompts in the order of their lengths, layer by layer"
    frozen = model.score(ids, mask, USERS, ITEMS, adapted=False)
    with use_backend("chain"):
        torch.testing.assert_close(scores, model.score(ids, mask, USERS, ITEMS), atol=5e-5, rtol=1e-4)
        torch.testing.assert_close(frozen, model.score(ids, mask, USERS, ITEMS, adapted=False), atol=5e-5, rtol=1e-4)
    assert (scores - frozen).abs().min() > 1e-4


@torch.no_grad()
def test_packed_where_a_gpu_has_attention_of_variable_length(
    make_base: Any, build: Any, prompts: Any, pad: Any, calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, by torch's, which float32 and heads of 12 have not; the tensors of this CPU count as on a GPU."""
    served = []

    def varlen(q: Tensor, k: Tensor, v: Tensor, cu_seq_q: Tensor, *_: Any, scale: float, **options: Any) -> Tensor:
        served.append(cu_seq_q.tolist())
        with use_backend("reference"):
            return packed_attention(q, k, v, cu_seq_q, scale=scale)

    monkeypatch.setattr(varlen_attention, "DEVICE", "cpu")
    monkeypatch.setattr(varlen_attention, "_varlen", lambda: (varlen, {"scale", "window_size", "enable_gqa"}))
    ids, mask = pad(prompts, "left")
    model = build(make_base("llama", torch.bfloat16, hidden_size=64))
    scores = model.score(ids, mask, USERS, ITEMS)
    assert served == calls == [[0, 1, 5, 12, 21, 30]] * 2
    with use_backend("chain"):
        padded = model.score(ids, mask, USERS, ITEMS)
    assert (scores - padded).norm() < 0.03 * padded.norm()
    for dtype, size in ((torch.float32, 64), (torch.bfloat16, 48)):
        build(make_base("llama", dtype, hidden_size=size)).score(ids, mask, USERS, ITEMS)
    assert len(calls) == 2


@torch.no_grad()
@pytest.mark.parametrize("why", ["window", "dropout", "architecture", "both ways", "eager", "backend"])
def test_not_packed(make_base: Any, build: Any, prompts: Any, pad: Any, calls: Any, why: str) -> None:
    changes: dict[str, Any] = dict(attention_dropout=0.5) if why == "dropout" else {}
    changes |= dict(use_bidirectional_attention=True) if why == "both ways" else {}
    architecture = {"window": "mistral", "architecture": "opt", "both ways": "gemma"}.get(why, "llama")
    model = build(make_base(architecture, **changes).eval())
    if why == "eager":
        model.unpatch().set_attn_implementation("eager")
        model = build(model.base)
    model.train(why == "dropout")
    with use_backend("chain" if why == "backend" else None):
        model(*pad(prompts, "left"), USERS, ITEMS)
    assert not calls


@needs_kernel
@torch.no_grad()
def test_a_window_that_holds_every_prompt_is_none(
    make_base: Any, build: Any, prompts: Any, pad: Any, calls: Any
) -> None:
    model = build(make_base("mistral", sliding_window=9))
    model(*pad(prompts, "left"), USERS, ITEMS)
    assert calls


def test_unpatch_gives_the_attention_back(make_base: Any, build: Any) -> None:
    base = make_base("llama")
    assert build(base).unpatch().config._attn_implementation == "sdpa"


@pytest.mark.parametrize("shared", [False, True])
def test_deltas_of_packed_samples(make_base: Any, make_deltas: Any, shared: bool) -> None:
    """Every patched linear, siblings and single ones, takes the samples in one row, or padded as before."""
    base = make_base("llama")
    patch = cora.patch(base)
    deltas = make_deltas(patch, None if shared else 3)
    patch.set_deltas(deltas, torch.tensor([0, 4, 4, 9], dtype=torch.int32))
    lengths, x = [4, 0, 5], torch.randn(9, 48)
    for name in ("q_proj", "k_proj", "o_proj"):
        layer = base.get_submodule(f"model.layers.0.self_attn.{name}")
        assert isinstance(layer, LoRALinear)
        packed = layer(x[None])
        lora_a, lora_b, scaling = deltas[layer.name]
        expected = []
        for i, rows in enumerate(x.split(lengths)):
            a, b = (lora_a, lora_b) if shared else (lora_a[i], lora_b[i])
            expected.append(rows @ layer.weight.t() + scaling * rows @ a @ b)
        torch.testing.assert_close(packed[0], torch.cat(expected), atol=1e-5, rtol=1e-4)
        padded = layer(x[:6].view(3, 2, 48))
        torch.testing.assert_close(padded[0], packed[0, :2], atol=1e-5, rtol=1e-4)
    attention = base.model.layers[0].self_attn
    together = [layer(x[None]) for layer in (attention.q_proj, attention.v_proj)]
    assert [y.shape for y in together] == [(1, 9, 48), (1, 9, 24)]
    with pytest.raises(ValueError, match="must end at the number of rows"):
        attention.q_proj(x[None, :8])


def test_siblings_of_packed_samples_are_one_call(make_base: Any, make_deltas: Any, count_calls: list[int]) -> None:
    base = make_base("llama")
    patch = cora.patch(base)
    patch.set_deltas(make_deltas(patch, 3), torch.tensor([0, 2, 5, 7], dtype=torch.int32))
    base(input_ids=torch.ones(1, 7, dtype=torch.long), use_cache=False)
    assert count_calls == [3, 1, 3, 1]


@pytest.mark.parametrize(
    ("cu_seqlens", "error", "message"),
    [
        ([0, 1, 2, 3], TypeError, r"cu_seqlens: expected an int32 tensor \[B \+ 1\]"),
        (torch.tensor([0, 1, 2, 3]), TypeError, r"got torch.int64 \[4\]"),
        (torch.zeros(2, 2, dtype=torch.int32), TypeError, r"got torch.int32 \[2, 2\]"),
        (torch.tensor([0, 3], dtype=torch.int32), ValueError, r"expected \[4\], deltas of 3 samples, got \[2\]"),
    ],
)
def test_wrong_borders(make_base: Any, make_deltas: Any, cu_seqlens: Any, error: Any, message: str) -> None:
    patch = cora.patch(make_base("llama"))
    with pytest.raises(error, match=message):
        patch.set_deltas(make_deltas(patch, 3), cu_seqlens)
    assert patch.calls.current() is None
