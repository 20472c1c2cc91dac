"""pip install in fresh environments that have torch and nothing of ours: what is compiled, where it runs."""

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SMOKE = """
import torch
from cora_kernels import lora_linear
from cora_kernels.info import report
x, w, a, b = torch.randn(2, 3, 8), torch.randn(6, 8), torch.randn(2, 8, 4), torch.randn(2, 4, 6)
torch.testing.assert_close(lora_linear(x, w, a, b, scaling=0.5), x @ w.T + 0.5 * x @ a @ b)
print(report())
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt" or shutil.which("c++") is None, reason="needs a C++ compiler and POSIX"),
]


def fresh_environment(folder: Path) -> Path:
    """The interpreter of a new environment that has what this one has, but nothing of ours, and no setuptools."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    ours = ("cora", "__editable__", "pip", "setuptools", "_distutils", "distutils-", "ninja")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(ours) and not (packages / entry.name).exists():
            (packages / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def ran(*command: str | Path, cwd: Path) -> str:
    """What it prints, errors too: where pip shows a build's own output differs from version to version."""
    out, both = subprocess.PIPE, subprocess.STDOUT
    return subprocess.run(command, cwd=cwd, check=True, text=True, stdout=out, stderr=both).stdout


def test_installed_from_a_folder_and_as_a_wheel_elsewhere(tmp_path: Path) -> None:
    source = tmp_path / "source"
    left_out = shutil.ignore_patterns(".*", "build", "runs", "tests", "bench", "*.so", "*.egg-info", "built.json")
    shutil.copytree(ROOT, source, ignore=left_out)
    one, other = fresh_environment(tmp_path / "one"), fresh_environment(tmp_path / "other")
    said = ran(one, "-m", "pip", "install", "-v", source, cwd=tmp_path)
    assert f"cora_kernels: native extension built for torch {torch.__version__}" in said
    assert "Collecting torch" not in said and "Downloading torch" not in said

    started = time.time()
    ran(one, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path / "wheels", source, cwd=tmp_path)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    assert torch.__version__.split("+")[0] + ".torch" in wheel.name and wheel.stat().st_mtime >= started
    ran(other, "-m", "pip", "install", wheel, cwd=tmp_path)
    for python in (one, other):
        report = ran(python, "-c", SMOKE, cwd=tmp_path)
        assert f"extension     built for torch {torch.__version__}" in report
        assert "  cpu         usable" in report or "the CPU kernels need an x86 processor" in report
