"""gradcheck in float64: the hand-written backward is the derivative of the forward, over every layout."""

from itertools import product

import pytest
import torch

from cora_kernels import lora_linear_group
from cora_kernels.testing import Case, make_inputs

CASES = [
    Case(
        batch=3,
        length=2,
        k=4,
        n=n,
        r=2,
        dtype=torch.float64,
        lengths=lengths,
        sample_a=sample_a,
        sample_b=sample_b,
        one_a=one_a,
        bias=True,
        tensor_scaling=tensor_scaling,
    )
    for lengths, sample_a, sample_b, tensor_scaling, (n, one_a) in product(
        (None, (2, 0, 3)), (True, False), (True, False), (True, False), (((3,), True), ((3, 5), True), ((3, 5), False))
    )
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck(case, backend, serves):
    inputs = make_inputs(case)
    serves(inputs)
    n, n_a = len(inputs.weights), len(inputs.lora_as)

    def op(x, scaling, *tensors):
        lora_as, lora_bs, biases = tensors[:n_a], tensors[n_a : n_a + n], tensors[n_a + n :]
        lora_a = lora_as[0] if case.one_a else lora_as
        options = {"scaling": scaling, "cu_seqlens": inputs.cu_seqlens, "backend": backend}
        return lora_linear_group(x, inputs.weights, lora_a, lora_bs, biases, **options)

    tensors = (*inputs.lora_as, *inputs.lora_bs, *inputs.biases)
    assert torch.autograd.gradcheck(op, (inputs.x, inputs.scaling, *tensors))
