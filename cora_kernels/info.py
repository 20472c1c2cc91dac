"""python -m cora_kernels.info: what runs here, and for each backend that does not, why."""

import importlib.metadata
import platform

import torch

from cora_kernels.backends import cuda, extension
from cora_kernels.dispatch import backends


def report() -> str:
    """Versions, the CPU's instruction set, the GPUs, what was built, and every backend in order of preference."""
    lines = [f"{'python':<14}{platform.python_version()} on {platform.system()} {platform.machine()}"]
    for name in ("torch", "triton", "cora-kernels"):
        lines.append(f"{name:<14}{_version(name)}")
    lines.append(f"{'cpu':<14}{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    for i, gpu in enumerate(gpus):
        architecture = gpu.gcnArchName if torch.version.hip else f"sm_{gpu.major}{gpu.minor}"
        lines.append(f"{f'gpu {i}':<14}{gpu.name}, {architecture}, {gpu.total_memory / 2**30:.0f} GiB")
    if not gpus:
        lines.append(f"{'gpu':<14}none")
    built_for = extension.built_for
    lines.append(f"{'extension':<14}{'not built' if built_for is None else f'built for torch {built_for}'}")
    built = cuda.architectures()
    kernels = "not built" if built is None else f"{', '.join(cuda.KERNELS)} for {built.replace(',', ', ')}"
    lines.append(f"{'cuda kernels':<14}{kernels}")
    lines.append("backends, the preferred first")
    for name, reason in backends().items():
        lines.append(f"  {name:<12}{'usable' if reason is None else f'not usable: {reason}'}")
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    print(report())
