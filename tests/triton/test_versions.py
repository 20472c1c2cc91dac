"""torch 2.6 and later bring Triton 3.2 and later: every kernel, layout and rank compiles with each, by the JIT itself.

Each Triton is fetched once, into a folder of its own under build/, and compiles in a process of its own.
"""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parents[2]
VERSIONS = ("3.2.0", "3.5.1", "3.9.0")
DESCRIPTOR_VERSIONS = ("3.4.0", "3.6.0", "3.9.0")
RANKS = (1, 3, 4, 8, 12, 16, 24, 40, 64)
# Of one block, on sm_86, sm_89 and sm_120, which are served with the tiles of sm_80; and on sm_90.
SHARED = {"sm_80": 101376, "sm_90": 232448}
DESCRIPTOR_RANKS = (8, 16, 24, 40, 64, 128)
slow = pytest.mark.slow


def fetched(version: str) -> Path:
    """The folder of this Triton."""
    folder = ROOT / "build" / "triton" / version
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            part = folder.with_suffix(".part")
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "-q",
                "--no-deps",
                "--target",
                part,
                f"triton=={version}",
            ]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"Triton {version} cannot be fetched: {done.stderr.strip().splitlines()[-1]}")
            part.rename(folder)
    return folder


# One rank of the oldest Triton takes half a minute of CPU at most: the others are for make test-all.
@pytest.mark.parametrize(
    ("version", "arch", "ranks"),
    [
        ("3.2.0", "sm_80", (24,)),
        *(pytest.param(v, arch, RANKS, marks=slow) for v in VERSIONS for arch in SHARED),
    ],
    ids=str,
)
def test_every_kernel_compiles(version, arch, ranks):
    """Without spills, in the shared memory that the part has, and with loads as wide as the strides allow."""
    entries = _matrix(version, arch, *ranks)
    assert len(entries) >= 30 * len(ranks)
    for found in entries:
        assert found["spills"] == 0, found
        assert found["shared"] <= SHARED[arch], found
        assert found["narrowest"] >= found["possible"], found


def _matrix(version: str, *arguments: object) -> list[dict]:
    """What tests/triton/matrix.py prints by this Triton."""
    command = [sys.executable, "tests/triton/matrix.py", *map(str, arguments)]
    paths = os.pathsep.join([str(fetched(version)), str(ROOT)])
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-500:]}\n{done.stderr[-3000:]}"
    version_line, *entries = map(json.loads, done.stdout.splitlines())
    assert version_line == {"triton": version}
    return entries


@slow
@pytest.mark.parametrize("version", DESCRIPTOR_VERSIONS)
@pytest.mark.parametrize("arch", ["sm_90", "sm_100"])
def test_the_gemm_of_descriptors_compiles(version, arch):
    """Without spills; wgmma or tcgen05 multiplies in its loops, and bulk copies are their only access to memory."""
    entries = _matrix(version, "descriptors", arch, *DESCRIPTOR_RANKS)
    assert len(entries) >= 6 * len(DESCRIPTOR_RANKS)
    for found in entries:
        assert found["spills"] == 0 and found["shared"] <= SHARED["sm_90"], found
        assert len(found["loops"]) == 2, "the depth, and the steps of the rank"
        for instructions, copies, others in found["loops"]:
            assert instructions and copies >= 2 and others == [], found


@pytest.mark.parametrize("version", [(3, 3), (3, 4), None])
def test_descriptors_are_of_triton_3_4(version, monkeypatch):
    from cora_kernels.planning import versions

    monkeypatch.setattr(versions, "triton_version", lambda: version)
    assert versions.has_descriptors() == (version != (3, 3))


@pytest.mark.parametrize("version", [(3, 5), (3, 6), None])
def test_before_triton_3_6_tiles_leave_registers(version, monkeypatch):
    """Whose GEMM with S given spilled at 128 numbers of the tile a thread; the vendor's is no matter of Triton."""
    from cora_kernels.planning import tile_sizes

    monkeypatch.setattr(tile_sizes, "triton_version", lambda: version)
    for arch in ("sm_80", "sm_90", "sm_100", "gfx942"):
        found = tile_sizes.gemm_configs(arch, torch.bfloat16, one_pass=False)
        all_tiles = tile_sizes.vendor_gemm_tiles(arch, torch.bfloat16)
        described = tile_sizes.descriptor_configs(arch)
        assert len(described) == {"sm_90": 2, "sm_100": 1 if version == (3, 5) else 2}.get(arch, 0)
        if version == (3, 5):
            assert [(c.BM, c.BN) for c in found] == [(c.BM, c.BN) for c in all_tiles[1:]]
            assert all(c.BM * c.BN <= 64 * 32 * c.num_warps for c in found)
        else:
            assert found == all_tiles and found[0].BN == 256


def test_an_older_triton_is_refused_by_name(monkeypatch):
    from cora_kernels.backends.triton import backend

    assert backend.unsupported("3.2.0") is None and backend.unsupported("3.10.1+git1234") is None
    assert backend.unsupported("3.1.0") == "Triton 3.2 or later is needed, which torch 2.6 brings, found 3.1.0"
    assert "found 2.1.0.post1" in backend.unsupported("2.1.0.post1")
    monkeypatch.setattr(backend, "_missing", backend.unsupported("3.1.0"))
    assert backend.availability() == "Triton 3.2 or later is needed, which torch 2.6 brings, found 3.1.0"


def test_a_scaling_stays_on_the_gpu_in_compiled_code(monkeypatch):
    """torch.compile hands a number on as a tensor. One of the CPU among tensors of a GPU would be kept out of CUDA
    graphs, and to read one of the GPU is a wait: neither happens."""
    from cora_kernels.backends import extension

    seen = []

    def op(x, a, scales, *rest):
        seen.append(scales)

    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    from cora_kernels.segments import Segments

    x = torch.empty(4, 8, device="meta")
    extension.shrink(op, x, x, 0.5, Segments(1, 4, 4, None))
    assert seen[0].device == x.device and seen[0].shape == ()


def test_a_scaling_of_the_gpu_is_read_by_the_kernel():
    """Not by the launcher: a tensor on the meta device, which has no value, is launched with like any other."""
    from aot import meta, recorded

    from cora_kernels.backends.triton import strategies
    from cora_kernels.operands import Operands
    from cora_kernels.segments import Segments

    x, w, a, b = (meta(*shape, dtype=torch.bfloat16) for shape in ((64, 32), (48, 32), (2, 32, 8), (8, 48)))
    scaling = meta()
    with recorded() as found:
        for strategy in ("one_pass", "two_kernels", "separate"):
            strategies.forward(x, Operands([w], [a], [b], [None], scaling, Segments(2, 64, 32, None)), None, strategy)
    scaled = [one for one in found if one.values.get("scaling_ptr") is not None]
    assert len(scaled) == 3
    assert all(one.values["scaling_ptr"] is scaling and one.values["stride_scaling"] == 0 for one in scaled)
