"""Every kernel under each of its configurations, compiled ahead of time for four parts that need not be there."""

import re

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from aot import PARTS, not_bulk, table  # noqa: E402

from cora_kernels.planning.versions import has_descriptors  # noqa: E402

FP32_FMA = re.compile(r"\bfma\.rn(\.ftz)?\.f32\b|\bv_(pk_)?fma(c|mk|ak)?_f32\b")
NARROW_LOAD = re.compile(r"\b(?:global|buffer)_load_(?!dwordx4\b)")
WIDE_LOAD = re.compile(r"cp\.async\.cg\.shared\.global.*, 0x10, |\b(?:global|buffer)_load_dwordx4\b")


@pytest.fixture(params=list(PARTS))
def arch(request) -> str:
    return request.param


def test_no_spills_and_everything_fits(arch):
    part = PARTS[arch]
    for label, found in table(arch).items():
        assert found.spills == 0, label
        assert found.shared <= part.shared_block, label
        assert found.registers <= (512 if arch.startswith("gfx") else 255), label
        assert found.blocks >= 1, label


def test_main_loops_run_on_tensor_cores(arch):
    for label, found in table(arch).items():
        if " bf16 " in label and label.startswith(("lowrank_gemm", "descriptor_gemm", "shrink", "outer")):
            large = " bf16 128x" in label and "_gemm " in label
            instructions = [PARTS[arch].matrix_instruction] + ([] if large else ["mma.sync"])
            assert any(instruction in line for line in found.loop for instruction in instructions), label
            assert not [line for line in found.loop if FP32_FMA.search(line)], label


def test_main_loops_load_sixteen_bytes_at_a_time(arch):
    """All of the x and W tiles; the narrow tile of A may be too small to give each thread 16 bytes."""
    for label, found in table(arch).items():
        if not label.startswith(("lowrank_gemm", "shrink")):
            continue
        wide = sum(bool(WIDE_LOAD.search(line)) for line in found.loop)
        if label.startswith("shrink_outer"):  # g feeds two products: before Hopper, by way of registers
            wide += sum("ld.global.v4.b32" in line for line in found.loop)
        if arch.startswith("gfx"):  # one load of a loop may be laid out before its label
            narrow = sum(bool(NARROW_LOAD.search(line)) for line in found.loop)
            assert wide >= 1 and (narrow == 0 or "S given bf16" not in label), label
        else:
            *sides, BK = map(int, re.search(r"\d+(x\d+)+", label)[0].split("x"))
            tile_bytes = sum(sides) * BK * (2 if " bf16 " in label else 4)
            assert wide * 16 * found.threads >= tile_bytes, label


@pytest.mark.parametrize("arch", ["sm_90", "sm_100"])
def test_bulk_copies_alone_bring_the_tiles_of_descriptors(arch):
    """Of x and W, then of S and B."""
    found = {label: one for label, one in table(arch).items() if label.startswith("descriptor_gemm")}
    assert found or not has_descriptors()
    for label, one in found.items():
        copies = [sum("cp.async.bulk.tensor" in line for line in loop) for loop in one.loops]
        assert len(copies) == 2 and min(copies) >= 2, label
        assert [not_bulk(loop) for loop in one.loops] == [[], []], label
