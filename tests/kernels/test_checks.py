"""Every wrong argument has its own clear error, which names it, the rule and what came; nothing is computed before."""

import pytest
import torch
from torch import Tensor

from cora_kernels import dispatch, lora_linear, lora_linear_group

B, T, K, N, R = 3, 4, 5, 6, 2


def _ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _padded(**changed) -> dict:
    right = {
        "x": torch.randn(B, T, K),
        "weight": torch.randn(N, K),
        "lora_a": torch.randn(B, K, R),
        "lora_b": torch.randn(B, R, N),
        "bias": torch.randn(N),
    }
    return right | changed


def _packed(**changed) -> dict:
    return _padded(x=torch.randn(12, K), cu_seqlens=_ints(0, 4, 4, 12)) | changed


def _group(**changed) -> dict:
    right = {
        "x": torch.randn(B, T, K),
        "weights": [torch.randn(N, K), torch.randn(4, K)],
        "lora_a": torch.randn(B, K, R),
        "lora_bs": [torch.randn(B, R, N), torch.randn(R, 4)],
        "biases": [torch.randn(N), None],
    }
    return right | changed


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
    """The choice of a backend comes after every check: none may be made here."""

    def reached(*args):
        raise AssertionError("a wrong argument reached the backends")

    monkeypatch.setattr(dispatch, "select", reached)


half = torch.bfloat16
X = [
    (_padded(x=None), TypeError, "x must be a Tensor, got None"),
    (_padded(x=[1.0]), TypeError, "x must be a Tensor, got a list"),
    (_padded(x=torch.zeros(B, T, K, dtype=torch.int64)), TypeError, "x must be float32, .* got torch.int64"),
    (_padded(x=torch.randn(T, K)), ValueError, r"x must be \[B, T, K\], or packed .* got shape \[4, 5\]"),
    (_padded(x=torch.randn(1, B, T, K)), ValueError, r"x must be \[B, T, K\].*got shape \[1, 3, 4, 5\]"),
    (_padded(x=torch.tensor(1.0)), ValueError, r"x must be \[B, T, K\].*got shape \[\]"),
]
CU_SEQLENS = [
    (_packed(cu_seqlens=[0, 4, 4, 12]), TypeError, "cu_seqlens must be a Tensor, got a list"),
    (_packed(cu_seqlens=torch.tensor([0, 4, 4, 12])), TypeError, "cu_seqlens must be int32, got torch.int64"),
    (_packed(cu_seqlens=_ints(0, 4, 4, 12)[None]), ValueError, r"cu_seqlens must be \[B \+ 1\], got shape \[1, 4\]"),
    (_packed(cu_seqlens=_ints()), ValueError, r"cu_seqlens must be \[B \+ 1\], got shape \[0\]"),
    (
        _packed(cu_seqlens=_ints(0, 4, 4, 12).to("meta")),
        ValueError,
        "cu_seqlens must be on the device of x, cpu, got meta",
    ),
    (
        _packed(x=torch.randn(B, T, K)),
        ValueError,
        r"x must be packed \[M, K\] where cu_seqlens .* got shape \[3, 4, 5\]",
    ),
    (_packed(cu_seqlens=_ints(1, 4, 4, 12)), ValueError, r"cu_seqlens must start at 0, got cu_seqlens\[0\] = 1"),
    (_packed(cu_seqlens=_ints(0, 4, 4, 11)), ValueError, r"must end at the number of rows of x, 12, got .* = 11"),
    (_packed(cu_seqlens=_ints(0)), ValueError, r"must end at the number of rows of x, 12, got \[1\], no samples"),
    (_packed(cu_seqlens=_ints(0, 4, 4, 13)), ValueError, r"must end at the number of rows of x, 12, got .* = 13"),
    (_packed(cu_seqlens=_ints(0, 5, 4, 12)), ValueError, "must not decrease, got 5 and then 4 at index 2"),
    (
        _packed(cu_seqlens=_ints(0, 4, 12)),
        ValueError,
        r"lora_a must be \[2, 5, r\] or \[5, r\] to suit x, got \[3, 5, 2\]",
    ),
]
WEIGHT = [
    (_padded(weight=None), TypeError, "weight must be a Tensor, got None"),
    (
        _padded(weight=torch.randn(N, K).to(half)),
        TypeError,
        "weight must be torch.float32 to suit x, got torch.bfloat16",
    ),
    (_padded(weight=torch.randn(N, K, device="meta")), ValueError, "weight must be on the device of x, cpu, got meta"),
    (_padded(weight=torch.randn(K, N)), ValueError, r"weight must be \[N, 5\] to suit x, .* got \[5, 6\]"),
    (_padded(weight=torch.randn(N, K, 1)), ValueError, r"weight must be \[N, 5\] to suit x, .* got \[6, 5, 1\]"),
    (_padded(weight=torch.randn(0, K)), ValueError, r"weight must be .* N and K >= 1, got \[0, 5\]"),
    (
        _padded(weight=torch.randn(N, K, requires_grad=True)),
        ValueError,
        "weight requires grad, but this op is for frozen",
    ),
]
FACTORS = [
    (_padded(lora_a=None), TypeError, "lora_a must be a Tensor, got None"),
    (_padded(lora_a=[torch.randn(K, R)]), TypeError, "lora_a must be a Tensor, got a list"),
    (
        _padded(lora_a=torch.zeros(K, R, dtype=torch.int8)),
        TypeError,
        "lora_a must be torch.float32 or .* got torch.int8",
    ),
    (_padded(lora_a=torch.randn(K, R).double()), TypeError, "lora_a must be torch.float32 or .* got torch.float64"),
    (_padded(lora_a=torch.randn(K, R, device="meta")), ValueError, "lora_a must be on the device of x, cpu, got meta"),
    (_padded(lora_a=torch.randn(B + 1, K, R)), ValueError, r"lora_a must be \[3, 5, r\] or .* got \[4, 5, 2\]"),
    (_padded(lora_a=torch.randn(1, K, R)), ValueError, r"lora_a must be \[3, 5, r\] or .* got \[1, 5, 2\]"),
    (_padded(lora_a=torch.randn(B, R, K)), ValueError, r"lora_a must be \[3, 5, r\] or .* got \[3, 2, 5\]"),
    (_padded(lora_a=torch.randn(K)), ValueError, r"lora_a must be \[3, 5, r\] or \[5, r\] to suit x, got \[5\]"),
    (_padded(lora_a=torch.randn(B, K, 0)), ValueError, r"lora_a must have a rank r >= 1, got \[3, 5, 0\]"),
    (_padded(lora_b=None), TypeError, "lora_b must be a Tensor, got None"),
    (_padded(lora_b=torch.randn(R, N).double()), TypeError, "lora_b must be torch.float32 or .* got torch.float64"),
    (_padded(lora_b=torch.randn(R, N, device="meta")), ValueError, "lora_b must be on the device of x, cpu, got meta"),
    (
        _padded(lora_b=torch.randn(B, R + 1, N)),
        ValueError,
        r"lora_b must be \[3, 2, 6\] or \[2, 6\] .* got \[3, 3, 6\]",
    ),
    (
        _padded(lora_b=torch.randn(B, R, N + 1)),
        ValueError,
        r"lora_b must be \[3, 2, 6\] or \[2, 6\] .* got \[3, 2, 7\]",
    ),
    (
        _padded(lora_b=torch.randn(B - 1, R, N)),
        ValueError,
        r"lora_b must be \[3, 2, 6\] or \[2, 6\] .* got \[2, 2, 6\]",
    ),
    (_padded(lora_b=torch.randn(N, R)), ValueError, r"lora_b must be \[3, 2, 6\] or \[2, 6\] .* got \[6, 2\]"),
]
BIAS_AND_SCALING = [
    (_padded(bias=1.0), TypeError, "bias must be a Tensor, got a float"),
    (_padded(bias=torch.randn(N).to(half)), TypeError, "bias must be torch.float32 to suit x, got torch.bfloat16"),
    (_padded(bias=torch.randn(N, device="meta")), ValueError, "bias must be on the device of x, cpu, got meta"),
    (_padded(bias=torch.randn(N + 1)), ValueError, r"bias must be \[6\] to suit the weight, got \[7\]"),
    (_padded(bias=torch.randn(1, N)), ValueError, r"bias must be \[6\] to suit the weight, got \[1, 6\]"),
    (_padded(scaling=None), TypeError, "scaling must be a number or a Tensor, got None"),
    (_padded(scaling="2"), TypeError, "scaling must be a number or a Tensor, got a str"),
    (_padded(scaling=True), TypeError, "scaling must be a number or a Tensor, got a bool"),
    (
        _padded(scaling=torch.ones(B, dtype=torch.int64)),
        TypeError,
        "scaling must be a floating tensor, got torch.int64",
    ),
    (_padded(scaling=torch.ones(B + 1)), ValueError, r"scaling must be a number or \[3\], .* got shape \[4\]"),
    (_padded(scaling=torch.ones(())), ValueError, r"scaling must be a number or \[3\], .* got shape \[\]"),
    (_padded(scaling=torch.ones(B, 1)), ValueError, r"scaling must be a number or \[3\], .* got shape \[3, 1\]"),
    (_padded(scaling=torch.ones(B, device="meta")), ValueError, "scaling must be on the device of x, cpu, got meta"),
]
GROUP = [
    (_group(weights=torch.randn(2, N, K)), TypeError, "weights must be a list or tuple, got a Tensor"),
    (_group(lora_bs=torch.randn(2, B, R, N)), TypeError, "lora_bs must be a list or tuple, got a Tensor"),
    (_group(biases=torch.randn(2, N)), TypeError, "biases must be a list or tuple, got a Tensor"),
    (_group(weights=[], lora_bs=[], biases=[]), ValueError, "weights must hold at least one Tensor, got none"),
    (_group(lora_bs=[torch.randn(R, N)]), ValueError, "lora_bs must hold one entry per weight, 2, got 1"),
    (_group(biases=[None] * 3), ValueError, "biases must hold one entry per weight, 2, got 3"),
    (_group(lora_a=[torch.randn(K, R)]), ValueError, "lora_a must hold one entry per weight, 2, got 1"),
    (_group(lora_a=None), TypeError, "lora_a must be a Tensor, got None"),
    (_group(lora_a=[torch.randn(K, R), None]), TypeError, r"lora_a\[1\] must be a Tensor, got None"),
    (_group(lora_a=[torch.randn(K, R), torch.randn(K, 0)]), ValueError, r"lora_a\[1\] must have a rank r >= 1"),
    (_group(weights=[torch.randn(N, K), None]), TypeError, r"weights\[1\] must be a Tensor, got None"),
    (_group(weights=[torch.randn(N, K), torch.randn(4, K + 1)]), ValueError, r"weights\[1\] must be \[N, 5\]"),
    (_group(lora_bs=[torch.randn(R, N), torch.randn(R, 5)]), ValueError, r"lora_bs\[1\] must be .* got \[2, 5\]"),
    (
        _group(lora_a=[torch.randn(K, R), torch.randn(K, R + 1)]),
        ValueError,
        r"lora_bs\[1\] must be \[3, 3, 4\] or \[3, 4\] to suit x, lora_a and the weight, got \[2, 4\]",
    ),
    (_group(biases=[None, torch.randn(5)]), ValueError, r"biases\[1\] must be \[4\] to suit the weight, got \[5\]"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), X + CU_SEQLENS + WEIGHT + FACTORS + BIAS_AND_SCALING)
def test_lora_linear(arguments, error, message):
    with pytest.raises(error, match=message):
        lora_linear(**arguments)


@pytest.mark.parametrize(("arguments", "error", "message"), GROUP)
def test_lora_linear_group(arguments, error, message):
    with pytest.raises(error, match=message):
        lora_linear_group(**arguments)


def test_factors_of_float64():
    """They go with a float64 x, and such an x with nothing else."""
    arguments = {name: value.double() for name, value in _padded().items()}
    with pytest.raises(TypeError, match="lora_b must be torch.float64 to suit x, got torch.float32"):
        lora_linear(**arguments | {"lora_b": torch.randn(R, N)})


def test_weight_under_autocast():
    """It may have any dtype that autocast casts, as for F.linear; float64 is none."""
    with torch.autocast("cpu"), pytest.raises(TypeError, match="weight must be torch.float32 or .* got torch.float64"):
        lora_linear(**_padded(weight=torch.randn(N, K).double()))
