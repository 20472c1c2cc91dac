"""python bench/gpu/driver.py [--must]: whether the NVIDIA driver that is here serves torch's default CUDA wheel.

It says so before torch is installed, for with an older driver that wheel finds no GPU and everything runs on the CPU
without a word. Needs Python alone. With --must, what stands against a GPU is an error.
"""

import re
import shutil
import subprocess
import sys

# The wheels of CUDA 13, torch's default, need driver 580; those of CUDA 12 take any since 525.
DEFAULT, OLDEST = 580, 525
OLDER_INDEX = "https://download.pytorch.org/whl/cu126"


def driver_version() -> str | None:
    """Of the NVIDIA driver, by nvidia-smi; None where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.match(r"\d[\d.]*", done.stdout.strip())
    return found[0] if done.returncode == 0 and found else None


def problem(version: str | None, index: str) -> str | None:
    """What stands against torch on the GPU, with the one line to run, or None. `index`: of wheels asked for, or ""."""
    if version is None:
        return "no NVIDIA driver answers nvidia-smi: torch will run on the CPU"
    major = int(version.split(".")[0])
    if major >= DEFAULT or (index and major >= OLDEST):
        return None
    if major >= OLDEST:
        return (
            f"driver {version} is too old for torch's default CUDA wheel, which needs {DEFAULT}: run make clean, "
            f"then make gpu TORCH_INDEX={OLDER_INDEX}"
        )
    return f"driver {version} is too old for every wheel of torch, which need {OLDEST}: update the driver"


def main(arguments: list[str]) -> str | int:
    must, index = "--must" in arguments, next((a for a in arguments if a.startswith("http")), "")
    version = driver_version()
    if version is None and shutil.which("rocminfo"):  # an AMD GPU, whose wheel TORCH_INDEX names
        return 0
    found = problem(version, index)
    if found and must:
        return found
    if found and version:  # a machine without a GPU has nothing to be told
        print(found, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
