"""Packed copies of W: never of a W that has changed, kept for those who ask, gone with the memory they were made of."""

import copy
import gc
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
import torch

from cora_kernels import lora_linear
from cora_kernels.backends import cpu, extension, weight_packs
from cora_kernels.operands import Operands
from cora_kernels.segments import Segments
from cora_kernels.testing import Case, call, make_inputs, results

pytestmark = pytest.mark.skipif(cpu.availability() is not None, reason=f"cpu: {cpu.availability()}")

N, K = 100, 64
# Columns come in panels of 48.
FORWARD, BACKWARD = 144 * K * 4, 96 * N * 4
# One block of rows, whose panels its worker packs, and several, for which the weight is packed as a whole.
ROWS = [1, 3, 8, 700]


@pytest.fixture(autouse=True)
def no_packs():
    weight_packs.clear_weight_packs()
    assert weight_packs.weight_pack_bytes() == 0


@pytest.fixture
def weight():
    return torch.randn(N, K, generator=torch.Generator().manual_seed(3))


def forward(weight, rows=3):
    n, k = weight.shape
    x = torch.linspace(-1, 1, rows * k).view(1, rows, k).to(weight.dtype)
    return lora_linear(x, weight, torch.zeros(k, 2), torch.zeros(2, n), backend="cpu")


def backward(weight, rows=3):
    n, k = weight.shape
    x = torch.ones(1, rows, k, dtype=weight.dtype, requires_grad=True)
    y = lora_linear(x, weight, torch.zeros(k, 2), torch.zeros(2, n), backend="cpu")
    grad = torch.linspace(-1, 1, rows * n).view(1, rows, n).to(weight.dtype)
    return torch.autograd.grad(y, x, grad)[0]


def check(weight, rows=3):
    """Both directions are those of the weight as it is now: the bits of a copy that was never seen before."""
    with torch.inference_mode(False):
        fresh = torch.tensor(weight.tolist(), dtype=weight.dtype)
        assert torch.equal(forward(weight, rows), forward(fresh, rows))
        assert torch.equal(backward(weight, rows), backward(fresh, rows))
        exact = torch.linspace(-1, 1, rows * weight.shape[1]).view(rows, -1) @ fresh.float().t()
        torch.testing.assert_close(forward(weight, rows)[0].float(), exact, rtol=1e-2, atol=1e-1)


def swap(weight):
    weight.data = torch.randn(weight.shape).to(weight.dtype)


def new_storage(weight):
    weight.set_(torch.randn(weight.shape).to(weight.dtype))


def offload_and_back(weight):
    elements = weight.detach().mul(-1).clone()
    weight.untyped_storage().resize_(0)
    weight.untyped_storage().resize_(elements.nbytes)
    weight.data.copy_(elements)


def grow(weight):
    weight.resize_(weight.shape[0] + 6, weight.shape[1])  # bf16 goes in pairs
    weight.data.normal_()


COUNTED = {
    "one element": lambda w: w[3, 5].add_(1.0),
    "one row": lambda w: w[7].zero_(),
    "all": lambda w: w.mul_(2.0),
    "copy_": lambda w: w.copy_(torch.randn(w.shape)),
}
MOVED = {".data = other": swap, "set_": new_storage, "resize_": grow}
DENSE = {
    "an average through .data": lambda w: w.data.lerp_(torch.randn(w.shape).to(w.dtype), 0.1),
    ".data.copy_": lambda w: w.data.copy_(torch.randn(w.shape)),
    "NumPy, all": lambda w: np.multiply(w.numpy(), 1.5, out=w.numpy()),
    "memory given back and taken": offload_and_back,
}
SPARSE = {
    ".data, one element": lambda w: w.data[7, 9].add_(1.0),
    ".data, one row": lambda w: w.data[42].zero_(),
    ".data, one column": lambda w: w.data[:, 5].mul_(20),
    "NumPy, one element": lambda w: w.numpy().__setitem__((99, 63), 4.0),
    "NumPy, one row": lambda w: w.numpy()[11].fill(0),
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("edit", COUNTED | MOVED | DENSE | SPARSE, ids=str)
def test_nothing_is_kept_of_a_weight_unasked(edit, rows, weight):
    check(weight, rows)
    with torch.no_grad():
        (COUNTED | MOVED | DENSE | SPARSE)[edit](weight)
    check(weight, rows)
    assert weight_packs.weight_pack_bytes() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("edit", COUNTED | MOVED | {k: v for k, v in DENSE.items() if "NumPy" not in k}, ids=str)
def test_a_kept_weight_is_packed_again_when_it_changes(edit, dtype, weight):
    weight = weight.to(dtype)
    weight_packs.keep_packed(weight)
    check(weight)
    held = weight_packs.weight_pack_bytes()
    assert held == sum((FORWARD, BACKWARD)) * weight.element_size() // 4
    with torch.no_grad():
        (COUNTED | MOVED | DENSE)[edit](weight)
    check(weight)
    rows = weight.shape[0]
    assert weight_packs.weight_pack_bytes() == ((rows + 47) // 48 * 48 * K + 96 * rows) * weight.element_size()


def test_numpy_rewrites_a_kept_weight(weight):
    weight_packs.keep_packed(weight)
    check(weight)
    DENSE["NumPy, all"](weight)
    check(weight)


@pytest.mark.parametrize("refresh", [weight_packs.refresh_packed, lambda w: weight_packs.clear_weight_packs()])
@pytest.mark.parametrize("edit", SPARSE.values(), ids=SPARSE)
def test_refresh_has_a_kept_weight_read_again(edit, refresh, weight):
    weight_packs.keep_packed(weight)
    check(weight)
    edit(weight)
    refresh(weight)
    assert weight_packs.weight_pack_bytes() == 0
    check(weight)
    assert weight_packs.weight_pack_bytes() == FORWARD + BACKWARD


def _write(name, row):
    memory = SharedMemory(name)
    np.ndarray((N, K), np.float32, memory.buf)[row] = 0.5
    memory.close()


@pytest.mark.parametrize("kept", [False, True])
def test_another_process_writes(kept, weight):
    memory = SharedMemory(create=True, size=weight.nbytes)
    try:
        shared = torch.frombuffer(memory.buf, dtype=torch.float32).view(N, K)
        shared.copy_(weight)
        if kept:
            weight_packs.keep_packed(shared)
        for row in (17, slice(None)):
            check(shared)
            writer = get_context("spawn").Process(target=_write, args=(memory.name, row))
            writer.start()
            writer.join()
            assert writer.exitcode == 0 and shared[17, 3] == 0.5
            if kept and row == 17:
                weight_packs.refresh_packed(shared)
            check(shared)
    finally:
        del shared
        gc.collect()
        memory.close()
        memory.unlink()


def test_a_kept_weight_gives_the_bits_of_one_that_is_not():
    for case in (
        Case(batch=2, length=21, k=50, n=(97, 49), r=5, sample_b=True, bias=True),
        Case(batch=9, length=1, k=64, n=(150,), r=16, sample_b=True, dtype=torch.bfloat16),
        Case(batch=3, length=300, k=33, n=(60,), r=18, dtype=torch.float16),
        Case(lengths=(1, 0, 30, 700), k=40, n=(60, 8), dtype=torch.bfloat16, factor_dtype=torch.float32),
    ):
        inputs = make_inputs(case)
        bare = results(lambda i: call(i, "cpu"), inputs)
        for weight in inputs.weights:
            weight_packs.keep_packed(weight)
        kept = results(lambda i: call(i, "cpu"), inputs)
        assert weight_packs.weight_pack_bytes() > 0
        for name, value in kept.items():
            assert torch.equal(value, bare[name]), (case, name)
        for weight in inputs.weights:
            weight_packs.release_packed(weight)


def test_packs_are_as_large_as_the_weight_and_die_with_it(weight):
    weight_packs.keep_packed(weight)
    assert weight_packs.weight_pack_bytes() == 0
    for _ in range(2):
        forward(weight)
        assert weight_packs.weight_pack_bytes() == FORWARD
    backward(weight)
    assert weight_packs.weight_pack_bytes() == FORWARD + BACKWARD


def test_packs_die_with_the_weight():
    weight = torch.randn(N, K)
    weight_packs.keep_packed(weight)
    backward(weight)
    assert weight_packs.weight_pack_bytes() == FORWARD + BACKWARD
    del weight
    gc.collect()
    assert weight_packs.weight_pack_bytes() == 0
    assert not weight_packs._kept


def test_packs_go_with_the_memory_they_were_made_of(weight):
    weight_packs.keep_packed(weight)
    backward(weight)
    weight.data = torch.randn(N, K)
    assert weight_packs.weight_pack_bytes() == 0
    backward(weight)
    weight.untyped_storage().resize_(0)
    assert weight_packs.weight_pack_bytes() == 0


def test_nothing_piles_up_when_memory_is_new_in_every_step(weight):
    weight_packs.keep_packed(weight)
    for step in range(10):
        gathered = torch.randn(N, K)
        check(gathered)
        weight.data = gathered
        check(weight)
        check(weight.detach().clone())
        assert weight_packs.weight_pack_bytes() == FORWARD + BACKWARD, step


def test_released_weights_keep_nothing(weight):
    weight_packs.release_packed(weight)
    weight_packs.refresh_packed(weight)
    weight_packs.keep_packed(weight)
    weight_packs.keep_packed(weight)
    forward(weight)
    weight_packs.release_packed(weight)
    assert weight_packs.weight_pack_bytes() == FORWARD
    weight_packs.release_packed(weight)
    assert weight_packs.weight_pack_bytes() == 0
    check(weight)
    assert weight_packs.weight_pack_bytes() == 0


def test_views_of_all_of_a_kept_weight_share_its_pack(weight):
    conv1d = weight.t().contiguous()
    weight_packs.keep_packed(conv1d)
    for _ in range(3):
        check(conv1d.t())
        assert weight_packs.weight_pack_bytes() == FORWARD + BACKWARD
    conv1d.mul_(2.0)
    check(conv1d.t())
    old = conv1d.t()
    conv1d.data = torch.randn(K, N)
    check(conv1d.t())
    check(old)
    assert weight_packs.weight_pack_bytes() == FORWARD + BACKWARD


def test_parts_of_a_kept_weight_are_not_kept(weight):
    weight_packs.keep_packed(weight)
    for part in (weight[:50], weight[50:], weight[:, :32]):
        check(part)
    assert weight_packs.weight_pack_bytes() == 0
    check(weight)
    assert weight_packs.weight_pack_bytes() == FORWARD + BACKWARD


def test_copies_of_a_kept_weight_are_not_kept(weight):
    weight_packs.keep_packed(weight)
    check(copy.deepcopy(weight))
    assert weight_packs.weight_pack_bytes() == 0


def test_weights_without_a_version_are_never_kept(weight):
    with torch.inference_mode():
        inference = weight.clone()
        weight_packs.keep_packed(inference)
        for _ in range(2):
            assert torch.equal(forward(inference), forward(inference.clone()))
            inference[3, 7].add_(1.0)
    assert weight_packs.weight_pack_bytes() == 0


@pytest.mark.parametrize("kept", [False, True])
def test_a_weight_in_another_dtype_than_x(kept, weight):
    if kept:
        weight_packs.keep_packed(weight)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        operands = Operands([weight], [torch.zeros(K, 2)], [torch.zeros(2, N)], [None], 1.0, Segments(1, 3, 3, None))
        y = cpu.forward(torch.ones(3, K, dtype=dtype), operands)[0][0]
        exact = torch.ones(3, K) @ weight.to(dtype).float().t()
        torch.testing.assert_close(y.float(), exact, rtol=1e-2, atol=1e-1)
    assert weight_packs.weight_pack_bytes() == (FORWARD * 2 if kept else 0)


def test_the_instruction_set_is_part_of_a_pack(weight):
    weight_packs.keep_packed(weight)
    try:
        for isa in extension._C.cpu_isas():
            extension._C.set_cpu_isa(isa)
            check(weight)
            assert weight_packs.weight_pack_bytes() == FORWARD + BACKWARD
    finally:
        extension._C.set_cpu_isa(None)


def test_many_threads_over_one_kept_weight(weight):
    weight_packs.keep_packed(weight)
    expected = forward(weight), backward(weight)
    weight_packs.refresh_packed(weight)

    def work(i):
        for step in range(60):
            if i == 0 and step % 7 == 0:
                weight_packs.refresh_packed(weight)
            if i == 1 and step % 11 == 0:
                weight_packs.clear_weight_packs()
            if i == 2:
                assert weight_packs.weight_pack_bytes() <= FORWARD + BACKWARD
            assert torch.equal(forward(weight), expected[0])
            assert torch.equal(backward(weight), expected[1])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    check(weight)
    assert weight_packs.weight_pack_bytes() == FORWARD + BACKWARD


def test_many_threads_over_weights_that_come_and_go(weight):
    """One weight that all of them keep, release and use, and new ones of each; half of the calls find none kept."""
    expected = forward(weight), forward(weight, 700)

    def work(i):
        for step in range(40):
            own = weight + i + step
            weight_packs.keep_packed(own)
            weight_packs.keep_packed(weight)
            assert torch.equal(forward(weight), expected[0])
            assert torch.equal(forward(own), forward(own.clone()))
            weight_packs.release_packed(weight)
            assert torch.equal(forward(weight, 700), expected[1])
            if step % 2:
                weight_packs.release_packed(own)
            del own

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    gc.collect()
    assert weight_packs.weight_pack_bytes() == 0
    assert not weight_packs._kept
