"""Packed samples by torch's grouped product, as on a GPU: without a look at the boundaries, which would be a wait."""

import pytest
import torch
import torch.nn.functional as F

from cora_kernels.backends import segment_products
from cora_kernels.testing import Case, assert_correct, call, make_inputs

BF16 = torch.bfloat16
pytestmark = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped_mm")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Every packed product must be grouped: the walk raises."""

    def waits(cu_seqlens, rows):
        raise AssertionError("the boundaries were read")

    monkeypatch.setattr(segment_products, "_GROUPED_DEVICE", "cpu")
    monkeypatch.setattr(segment_products, "spans", waits)


@pytest.mark.parametrize("r", [8, 16, 24])
def test_packed_products_wait_for_no_boundaries(r, as_on_a_gpu):
    """Forward and every gradient, samples without rows among them, by the error rule."""
    case = Case(lengths=(5, 0, 33, 1, 0), k=48, n=(40,), r=r, dtype=BF16, sample_b=True)
    assert_correct(make_inputs(case), "chain")


@pytest.mark.parametrize("case", [Case(lengths=(5, 2), k=48, n=(40,), r=5, dtype=BF16), Case(lengths=(5, 2))], ids=str)
def test_what_is_not_grouped_is_walked(case, monkeypatch):
    """A rank whose rows are not aligned, and another dtype."""
    monkeypatch.setattr(segment_products, "_GROUPED_DEVICE", "cpu")
    inputs = make_inputs(case)
    grouped, (expected,) = [], call(inputs, "reference")
    monkeypatch.setattr(F, "grouped_mm", lambda *arguments, **options: grouped.append(arguments))
    assert call(inputs, "chain")[0].shape == expected.shape and not grouped
