"""A training keeps what it frees; a choice made by the environment stands."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from cora.runs.allocator import keep_freed_memory
kept = keep_freed_memory()
def step():
    # Of sizes that never come twice, so that nothing is learned from one call for the next.
    blocks = [torch.zeros((3 + i) << 19) for i in range(12)]
for _ in range(5):
    step()  # Until the blocks lie where they stay.
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
PAGES = 3 * sum((3 + i) << 21 for i in range(12)) // os.sysconf("SC_PAGE_SIZE")


def faults(environment: dict[str, str]) -> tuple[bool, int]:
    """Whether freed memory is kept, and the pages that three steps were handed anew."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@needs_glibc
def test_freed_memory_is_used_again() -> None:
    kept, count = faults({})
    assert kept
    assert count < PAGES / 100


@needs_glibc
@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_"])
def test_the_environment_decides(name: str) -> None:
    value = {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000"}[name]
    kept, count = faults({name: value, "MALLOC_MMAP_THRESHOLD_": "65536"})
    assert not kept
    assert count > PAGES / 2
