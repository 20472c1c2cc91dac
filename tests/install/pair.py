"""python tests/install/pair.py TORCH [ARGUMENTS OF PYTEST]: the checkout as another pair of Python and torch has it.

In a new environment of the Python that runs this, with torch==TORCH from the package index and nothing else, installs
the checkout, checks that the extension was compiled and shows what `cora_kernels.info` says; then puts pytest there and
runs the kernels' tests against what was installed, those of ARGUMENTS if there are any. Needs Python alone, and some
gigabytes of disk in build/ where the index has no torch without CUDA.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(torch: str, *arguments: str) -> int:
    folder = ROOT / "build" / f"pair-{sys.version_info[0]}.{sys.version_info[1]}-{torch}"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, f"torch=={torch}"], check=True)
    # The last one that was built is not the checkout.
    subprocess.run([*pip, "--force-reinstall", "--no-deps", "--no-cache-dir", ROOT], check=True)
    # Not from the root of the checkout, whose packages would be imported.
    found = subprocess.run([python, "-m", "cora_kernels.info"], cwd=folder, check=True, capture_output=True, text=True)
    print(found.stdout)
    if f"extension     built for torch {torch}" not in found.stdout:
        print(f"no extension was built for torch {torch}", file=sys.stderr)
        return 1
    subprocess.run([*pip, "numpy", "pytest", "hypothesis"], check=True)
    chosen = [ROOT / one if (ROOT / one).exists() else one for one in arguments or ["tests/kernels"]]
    command = [python, "-m", "pytest", f"--rootdir={ROOT}", *chosen]
    return subprocess.run(command, cwd=folder).returncode


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
