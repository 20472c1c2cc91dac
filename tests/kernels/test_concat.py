"""[x | S]·[W | Bᵀ]ᵀ of weights with room: right, no larger than it has to be, and nothing written that others hold."""

import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cora_kernels import lora_linear, lora_linear_group
from cora_kernels.backends import chain, wide_weights
from cora_kernels.backends.concat import Concat
from cora_kernels.backends.wide_weights import give_up_room, make_room, room_of
from cora_kernels.planning import cost
from cora_kernels.planning.gpus import GPUS
from cora_kernels.testing import Case, Inputs, assert_correct, make_inputs, results

CASES = [
    Case(batch=3, length=17, k=33, n=(65,), r=5, bias=True),
    Case(batch=5, length=1, k=64, n=(48,), r=70),
    Case(batch=2, length=40, k=72, n=(40, 8, 17), r=16, bias=True),
    Case(lengths=(4, 0, 9, 1), k=40, n=(40, 8), r=4, one_a=False),
    Case(lengths=(0, 5, 0, 30), k=48, n=(31, 9), r=7, tensor_scaling=True, bias=True),
    Case(batch=2, length=6, k=16, n=(24,), r=64, sample_a=False),
]


def with_room(inputs: Inputs, transposed: bool = False) -> Inputs:
    def widened(weight: Tensor) -> Tensor:
        stored = nn.Parameter(weight.t().contiguous() if transposed else weight.clone(), requires_grad=False)
        make_room(stored, inputs.lora_bs[0].shape[0], transposed)
        return stored.t() if transposed else stored

    return replace(inputs, weights=tuple(widened(weight) for weight in inputs.weights))


@pytest.mark.parametrize("transposed", [False, True], ids=["as Linear", "as Conv1D"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_by_the_error_rule(case, dtype, transposed, poison):
    inputs = with_room(make_inputs(replace(case, dtype=dtype)), transposed)
    assert all(room_of(weight) >= case.r for weight in inputs.weights)
    assert_correct(inputs, "concat")


def test_a_B_of_each_sample_is_refused():
    inputs = make_inputs(Case(sample_b=True))
    with pytest.raises(
        ValueError, match=r"'concat' cannot serve.*lora_b must be shared by the batch, \[r, N\], got \[3"
    ):
        lora_linear(inputs.x, inputs.weights[0], inputs.lora_as[0], inputs.lora_bs[0], backend="concat")


@pytest.mark.parametrize("r", [1, 16, 64])
def test_operations_and_bytes(r):
    """Beside S, at most 1.016 times the operations of the frozen linear, and the bytes that the cost rule counts."""
    inputs = with_room(make_inputs(Case(batch=2, length=64, k=4096, n=(256, 128), r=r), requires_grad=False))
    x, operands = inputs.x.flatten(0, 1), inputs.operands()
    s = [torch.randn(128, r)]
    kernels = Concat(chain)
    with FlopCounterMode(display=False) as counted:
        kernels.forward(x, operands, s)
    frozen = 2 * 128 * 4096 * (256 + 128)
    assert frozen < counted.get_total_flops() <= 1.016 * frozen

    class Bytes(TorchDispatchMode):
        """Of every tensor that an operator reads or writes; of views, and of memory alone, nothing."""

        moved = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
                self.moved += sum(t.numel() * t.itemsize for t in (*args, out))
            elif func.overloadpacket in (torch.ops.aten.copy_, torch.ops.aten._to_copy):
                self.moved += sum(t.numel() * t.itemsize for t in args[:2])
            elif func.overloadpacket is torch.ops.aten.zero_:
                self.moved += args[0].numel() * args[0].itemsize
            return out

    with Bytes() as found:
        kernels.forward(x, operands, s)
    problems = [cost.Problem(128, 4096, n, r, 2, 64, torch.float32, s_given=j > 0) for j, n in enumerate((256, 128))]
    launches = cost.concat(problems, GPUS["A100"], copies=False).launches
    expected = sum(launch.bytes for launch in launches if launch.kernel not in ("shrink", "sum of planes"))
    assert found.moved == pytest.approx(expected, rel=0.02)


def test_the_weight_stays_itself():
    """The same Parameter with the same values, before, during and after; a copy of it elsewhere has no room."""
    weight = nn.Parameter(torch.randn(24, 40), requires_grad=False)
    before, version = weight.detach().clone(), weight._version
    make_room(weight, 5)
    address = weight.data_ptr()
    assert room_of(weight) == room_of(weight.t()) == 64 and torch.equal(weight, before)
    assert weight.untyped_storage().nbytes() == 24 * (40 + 64) * 4
    make_room(weight, 64)
    assert weight.data_ptr() == address
    make_room(weight, 65)
    assert room_of(weight) == 128 and torch.equal(weight, before)
    assert room_of(weight.clone()) == room_of(weight[:3]) == room_of(weight[:, :8]) == 0
    inputs = replace(make_inputs(Case(k=40, n=(24,)), requires_grad=False), weights=(weight,))
    results(lambda i: lora_linear_group(i.x, i.weights, i.lora_as, i.lora_bs, backend="concat"), inputs)
    assert torch.equal(weight, before) and weight._version == version
    give_up_room(weight)
    assert room_of(weight) == 0 and weight.is_contiguous() and torch.equal(weight, before)
    give_up_room(weight)


def test_a_weight_that_moved_or_died_has_no_room():
    rooms = len(wide_weights._rooms)
    inputs = with_room(make_inputs(Case(), requires_grad=False))
    (weight,) = inputs.weights
    expected = lora_linear(inputs.x, weight, inputs.lora_as[0], inputs.lora_bs[0], backend="concat")
    weight.data = weight.data.clone(memory_format=torch.preserve_format)
    assert room_of(weight) == 0
    assert torch.equal(lora_linear(inputs.x, weight, inputs.lora_as[0], inputs.lora_bs[0], backend="concat"), expected)
    make_room(weight, 4)
    assert room_of(weight) == 64
    del inputs, weight
    gc.collect()
    assert len(wide_weights._rooms) == rooms


def test_what_autograd_saved_is_not_written():
    """Another P, of another rank, is multiplied by the same weight between a forward and its backward."""
    inputs = with_room(make_inputs(Case(r=9, bias=True)))
    expected = results(lambda i: lora_linear_group(i.x, i.weights, i.lora_as, i.lora_bs, backend="concat"), inputs)

    def interrupted(i: Inputs) -> tuple[Tensor, ...]:
        ys = lora_linear_group(i.x, i.weights, i.lora_as, i.lora_bs, backend="concat")
        other = make_inputs(Case(r=64), seed=1)
        lora_linear(i.x, i.weights[0], other.lora_as[0], other.lora_bs[0], backend="concat")
        return ys

    got = results(interrupted, inputs)
    assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)


def test_what_a_wider_factor_left_is_not_read():
    inputs = with_room(make_inputs(Case(r=100), requires_grad=False))
    x, (weight,), narrow = inputs.x, inputs.weights, make_inputs(Case(), requires_grad=False)
    a, b = narrow.lora_as[0], narrow.lora_bs[0]
    expected = lora_linear(x, weight, a, b, backend="concat")
    bad = torch.full_like(inputs.lora_bs[0], float("inf"))
    assert not lora_linear(x, weight, inputs.lora_as[0], bad, backend="concat").isfinite().any()
    for rank in (70, 4):
        assert torch.equal(lora_linear(x, weight, a, b, backend="concat"), expected), rank
        lora_linear(x, weight, inputs.lora_as[0][..., :rank], bad[:rank], backend="concat")


def test_threads_with_other_factors_share_a_weight():
    inputs = with_room(make_inputs(Case(batch=2, length=64, k=256, n=(256,), r=8), requires_grad=False))
    others = [make_inputs(Case(k=256, n=(256,), r=8), seed=seed).lora_bs[0].detach() for seed in range(4)]

    def run(b: Tensor) -> Tensor:
        return lora_linear(inputs.x, inputs.weights[0], inputs.lora_as[0], b, backend="concat")

    expected = [run(b) for b in others]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            assert all(map(torch.equal, pool.map(run, others), expected))


def test_a_stream_waits_for_the_last_one(monkeypatch):
    waited = []

    class Stream:
        def wait_stream(self, other: "Stream") -> None:
            waited.append((self, other))

    weight = nn.Parameter(torch.zeros(4, 4), requires_grad=False)
    make_room(weight, 1)
    room = wide_weights._rooms[weight.data_ptr()]
    first, second = Stream(), Stream()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for stream in (first, first, second, first):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device, stream=stream: stream)
        wide_weights._wait_for_the_last_stream(room, torch.device("cuda"))
    assert waited == [(second, first), (first, second)]
