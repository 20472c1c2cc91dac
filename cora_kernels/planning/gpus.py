"""The rates of GPUs: what a kernel may take of each, by the cost rule."""

import re
from functools import lru_cache
from typing import NamedTuple

import torch

from cora_kernels.planning import tuning_file


class Gpu(NamedTuple):
    """What good kernels reach, not the data sheet: `matrix` FLOP/s in 16 bits, `simple` in fp32, bytes/s.

    Triton's GEMM of ours reaches gemm / (1 + fill / K) of the vendor's rate, `fill` the depth that the start and the
    end of a tile cost; the CUDA C++ one the same with `gemm_cuda`, that of descriptors with `gemm_descriptors` and
    `fill_descriptors`. Of a y that the vendor's GEMM adds to, its reading takes `exposed` of the time that it would
    take alone. `host` is the CPU's time for one launch of ours in eager mode.

    Nobody has timed the GEMM of descriptors yet. Published ones reach 0.93 to 0.97 of cuBLAS on Hopper at a depth of
    4096; but they hide a tile's start and end behind the products of its neighbours, and they add no S·B. Ours is taken
    to pay for that with some four microseconds a tile, which leaves it 0.88: a cautious guess, by which the vendor's
    GEMM keeps its place where the two are close. On Blackwell it is taken to be no faster than that of pointers.

    The rates of A100, H100, H200, RTX 4090 and L40S are those behind the break-even ratios that the project's design
    measured; the others and everything from `gemm` on are estimates until `python -m cora_kernels.tune` has run.
    """

    name: str
    arch: str
    matrix: float
    simple: float
    bandwidth: float
    multiprocessors: int
    gemm: float
    gemm_cuda: float = 0.85
    gemm_descriptors: float = 0.96
    fill: float = 128.0
    fill_descriptors: float = 384.0
    exposed: float = 0.5
    host: float = 20e-6


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", "sm_80", 291e12, 18e12, 2.04e12, 108, 0.91),
        Gpu("A40", "sm_80", 110e12, 30e12, 0.63e12, 84, 0.91),
        Gpu("A10", "sm_80", 70e12, 25e12, 0.54e12, 72, 0.91),
        Gpu("RTX 3090", "sm_80", 71e12, 30e12, 0.85e12, 82, 0.91),
        Gpu("L4", "sm_80", 90e12, 25e12, 0.27e12, 58, 0.91),
        Gpu("L40", "sm_80", 165e12, 75e12, 0.78e12, 142, 0.91),
        Gpu("L40S", "sm_80", 333e12, 80e12, 0.864e12, 142, 0.91),
        Gpu("RTX 4090", "sm_80", 164e12, 70e12, 1.01e12, 128, 0.91),
        Gpu("RTX 5090", "sm_80", 205e12, 90e12, 1.6e12, 170, 0.88),
        Gpu("H100", "sm_90", 750e12, 55e12, 3.35e12, 132, 0.82, 0.5),
        Gpu("GH200", "sm_90", 750e12, 55e12, 3.7e12, 132, 0.82, 0.5),
        Gpu("H200", "sm_90", 745e12, 55e12, 4.8e12, 132, 0.82, 0.5),
        Gpu("H20", "sm_90", 140e12, 38e12, 3.6e12, 78, 0.88, 0.8),
        Gpu("B200", "sm_100", 1500e12, 65e12, 7.7e12, 148, 0.60, 0.25, 0.60),
        Gpu("MI300X", "gfx942", 600e12, 120e12, 4.3e12, 304, 0.77),
    )
}
# What the names of other devices with one of these chips are.
_SAME_CHIPS = {"A800": "A100", "A10G": "A10", "H800": "H100", "GB200": "B200"}


@lru_cache
def gpu_of(device: torch.device) -> Gpu:
    """The rates of the device: as tuned, or of the nearest part in the table. On the CPU, those of an A100.

    A part of the table with other multiprocessors, as a PCIe card or a laptop has, multiplies in proportion to them.
    """
    if device.type != "cuda":
        return GPUS["A100"]
    properties = torch.cuda.get_device_properties(device)
    names = {name: name for name in GPUS} | _SAME_CHIPS
    # As whole words: an A1000 is no A100, an L4 no L40S, and the H200 of "GH200" is another.
    known = [GPUS[part] for name, part in names.items() if re.search(rf"\b{name}\b", properties.name)]
    if torch.version.hip:
        nearest = "MI300X"
    else:
        capability = properties.major, properties.minor
        nearest = {9: "H100", 10: "B200", 11: "B200"}.get(
            properties.major, "A100" if capability <= (8, 0) else "RTX 4090"
        )
    gpu = known[0] if known else GPUS[nearest]
    there = properties.multi_processor_count
    share = there / gpu.multiprocessors if known else 1.0
    gpu = gpu._replace(
        name=properties.name, multiprocessors=there, matrix=gpu.matrix * share, simple=gpu.simple * share
    )
    return gpu._replace(**tuning_file.load(properties.name)["gpu"])
