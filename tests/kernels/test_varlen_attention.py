"""packed_attention by torch's variable-length attention, with a stand-in of each version's signature on the CPU."""

import inspect
from itertools import pairwise

import pytest
import torch
from test_attention import BF16, FAMILIES, FP16, FP32, SHAPES, definition, leaves_in, operands, results
from torch import Tensor

from cora_kernels import packed_attention, use_backend
from cora_kernels.attention import attention_not_supported_reason
from cora_kernels.backends import varlen_attention
from cora_kernels.testing import SHORT_NAMES, assert_by_rule

CPU = torch.device("cpu")
CALLS: list[tuple[int, int]] = []


def _flash(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, scale):
    """Causal with the last query at the last key, as FlashAttention has it, and as strict about its operands."""
    CALLS.append((max_q, max_k))
    for t in (q, k, v):
        assert t.stride(2) == 1 and t.stride(0) % 8 == t.stride(1) % 8 == 0 and t.data_ptr() % 16 == 0
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and cu_seq_k[-1] == len(k) and q.shape[1] % k.shape[1] == 0
    assert max_q == int(cu_seq_q.diff().max()) and max_k == int(cu_seq_k.diff().max())
    outs = [q[:0]]
    for (start, stop), (first, last) in zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True):
        own = q[start:stop].transpose(0, 1)
        keys, values = (
            t[first:last].transpose(0, 1).repeat_interleave(q.shape[1] // k.shape[1], 0).float() for t in (k, v)
        )
        s = scale * (own.float() @ keys.transpose(1, 2))
        future = torch.ones(s.shape[1:], dtype=torch.bool).triu(1 + last - first - (stop - start))
        p = s.masked_fill(future, float("-inf")).softmax(-1)
        outs.append((p @ values).to(q.dtype).transpose(0, 1))
    return torch.cat(outs)


def of_210(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert is_causal and q.shape[1] == k.shape[1]
    return _flash(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, q.shape[2] ** -0.5)


def of_211(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)):
    assert window_size == (-1, 0) and q.shape[1] == k.shape[1]
    return _flash(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, scale)


def of_212(
    q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1), enable_gqa=False
):
    assert window_size == (-1, 0) and enable_gqa
    return _flash(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, scale)


@pytest.fixture(params=[of_210, of_211, of_212], ids=lambda version: version.__name__)
def varlen(request, monkeypatch) -> list[tuple[int, int]]:
    """Tensors of the CPU count as on a GPU whose torch has this version. Every call of it, as it comes."""
    parameters = frozenset(inspect.signature(request.param).parameters)
    monkeypatch.setattr(varlen_attention, "DEVICE", "cpu")
    monkeypatch.setattr(varlen_attention, "_varlen", lambda: (request.param, parameters))
    CALLS.clear()
    return CALLS


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=SHORT_NAMES.get)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES + FAMILIES if shape.dim % 8 == 0], ids=str)
def test_by_the_error_rule(shape, dtype, varlen):
    tensors = operands(shape, dtype)
    got, usual = results(packed_attention, tensors), results(definition, tensors)
    exact = results(definition, leaves_in(tensors, torch.float64))
    for name, value in got.items():
        assert_by_rule(name, value, exact[name], usual[name], dtype)
    assert bool(varlen) == (sum(shape.lengths) > 0)


@pytest.mark.parametrize("dim", [12, 264])
def test_heads_that_flash_attention_has_no_kernel_for(dim, varlen):
    """Go sample by sample."""
    q, k, v, cu_seqlens, _ = operands(SHAPES[0]._replace(dim=dim), BF16)
    assert packed_attention(q, k, v, cu_seqlens).shape == q.shape and not varlen


def test_another_scale(varlen):
    q, k, v, cu_seqlens, _ = operands(SHAPES[0], BF16)
    got = packed_attention(q, k, v, cu_seqlens, scale=0.3)
    with use_backend("reference"):
        expected = packed_attention(q, k, v, cu_seqlens, scale=0.3)
    assert (got - expected).norm() < 6e-3 * expected.norm() and len(varlen) == 1


def test_boundaries_are_read_once_a_batch(varlen, monkeypatch):
    """By all layers that come with them; anew once they were written to, or with other parents."""
    read = []
    spans = varlen_attention.spans
    monkeypatch.setattr(varlen_attention, "spans", lambda *a: read.append(1) or spans(*a))
    q, k, v, cu_seqlens, parents = operands(FAMILIES[0], BF16)
    for _ in range(3):
        packed_attention(q, k, v, cu_seqlens, parents=parents)
    assert len(read) == 1
    packed_attention(q, k, v, cu_seqlens)
    packed_attention(q, k, v, cu_seqlens, parents=parents)
    assert len(read) == 3 and varlen[-1] != varlen[-2]
    cu_seqlens[1] -= 5
    assert packed_attention(q, k, v, cu_seqlens, parents=parents).shape == q.shape
    assert len(read) == 4 and varlen[-1] != varlen[-2]


@pytest.mark.parametrize(
    ("boundaries", "parents", "message"),
    [
        ([0, 5, 4, 12], None, "cu_seqlens must not decrease"),
        ([0, 5, 9, 11], None, "cu_seqlens must end at the number of rows of x, 12"),
        ([0, 5, 9, 12], [-1, 3, 0], "parents must be -1 or one of the 3 samples"),
    ],
)
def test_wrong_boundaries_are_named(boundaries, parents, message, varlen):
    q = torch.randn(12, 2, 8, dtype=BF16)
    cu_seqlens = torch.tensor(boundaries, dtype=torch.int32)
    with pytest.raises(ValueError, match=message):
        packed_attention(
            q, q, q, cu_seqlens, parents=None if parents is None else torch.tensor(parents, dtype=torch.int32)
        )


def test_views_that_it_cannot_read_are_copied(varlen):
    """Rows that start off 16 bytes, elements apart, heads that share memory."""
    base = torch.randn(12, 2, 25, dtype=BF16)
    wide = torch.randn(12, 2, 16, dtype=BF16)
    shared = torch.randn(12, 8, dtype=BF16)[:, None].expand(12, 2, 8)
    cu_seqlens = torch.tensor([0, 5, 12], dtype=torch.int32)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return packed_attention(q, k, v, cu_seqlens)

    for views in ((base[:, :, 1:9], base[:, :, 8:16], base[:, :, 17:]), (wide[:, :, ::2], wide[:, :, 1::2], shared)):
        assert torch.equal(run(*views), run(*(t.contiguous() for t in views)))


def test_who_is_served(varlen, monkeypatch):
    assert attention_not_supported_reason(BF16, CPU, 64) is None
    assert "takes bfloat16 and float16, got torch.float32" in str(attention_not_supported_reason(FP32, CPU, 64))
    assert "multiple of 8 up to 256 elements, got 12" in str(attention_not_supported_reason(BF16, CPU, 12))
    with use_backend("chain"):
        assert attention_not_supported_reason(BF16, CPU, 64) == "use_backend asks for 'chain'"
    monkeypatch.setattr(varlen_attention, "_varlen", lambda: None)
    assert "since 2.10" in str(attention_not_supported_reason(BF16, CPU, 64))


def test_torch_has_the_signature_that_is_asked_for():
    """The real one, of the torch that is here."""
    found = varlen_attention._varlen()
    if found is None:
        pytest.skip("torch is older than 2.10")
    _, parameters = found
    assert {"query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"} <= parameters
    assert {"window_size", "scale"} <= parameters or "is_causal" in parameters
