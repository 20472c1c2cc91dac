"""python -m bench.gpu.sanitized BACKEND: a few calls with their backward, for compute-sanitizer to watch."""

import sys

import torch

from cora_kernels.testing import Case, call, make_inputs, results


def main(backend: str, device: str = "cuda") -> None:
    dtype = torch.bfloat16 if device == "cuda" else torch.float16
    for case in (
        Case(lengths=(0, 1, 127, 129), k=136, n=(72,), r=8, dtype=dtype, sample_b=True),
        Case(batch=4, length=3, k=136, n=(72,), r=24, dtype=dtype),
    ):
        results(lambda inputs: call(inputs, backend), make_inputs(case, device))


if __name__ == "__main__":
    main(*sys.argv[1:])
