"""The rates of GPUs: what a kernel may take of each, by the cost rule."""

import re
from functools import lru_cache
from typing import NamedTuple

import torch

from cora_kernels.planning import tuning_file


class Gpu(NamedTuple):
    """What good kernels reach, not the data sheet: `matrix` FLOP/s in 16 bits, `simple` in fp32, bytes/s.

    `gemm` is the speed of our GEMM over the vendor's. The rates of A100, H100, H200, RTX 4090 and L40S are those behind
    the break-even ratios that the project's design measured; the others and every `gemm` are estimates until
    `python -m cora_kernels.tune` has run.
    """

    name: str
    arch: str
    matrix: float
    simple: float
    bandwidth: float
    multiprocessors: int
    gemm: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", "sm_80", 291e12, 18e12, 2.04e12, 108, 0.95),
        Gpu("L40S", "sm_80", 333e12, 80e12, 0.864e12, 142, 0.95),
        Gpu("RTX 4090", "sm_80", 164e12, 70e12, 1.01e12, 128, 0.95),
        Gpu("H100", "sm_90", 750e12, 55e12, 3.35e12, 132, 0.80),
        Gpu("H200", "sm_90", 745e12, 55e12, 4.8e12, 132, 0.80),
        Gpu("B200", "sm_100", 1500e12, 65e12, 7.7e12, 148, 0.60),
        Gpu("MI300X", "gfx942", 600e12, 120e12, 4.3e12, 304, 0.75),
    )
}


@lru_cache
def gpu_of(device: torch.device) -> Gpu:
    """The rates of the device: as tuned, or of the nearest part in the table. On the CPU, those of an A100."""
    if device.type != "cuda":
        return GPUS["A100"]
    properties = torch.cuda.get_device_properties(device)
    known = [gpu for gpu in GPUS.values() if re.search(rf"{gpu.name}(?!\d)", properties.name)]  # an A1000 is no A100
    if torch.version.hip:
        nearest = "MI300X"
    else:
        capability = properties.major, properties.minor
        nearest = {9: "H100", 10: "B200", 11: "B200"}.get(
            properties.major, "A100" if capability <= (8, 0) else "RTX 4090"
        )
    gpu = known[0] if known else GPUS[nearest]
    rates = tuning_file.load(properties.name)["gpu"]
    return gpu._replace(name=properties.name, multiprocessors=properties.multi_processor_count, **rates)
