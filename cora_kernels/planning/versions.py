"""Of packages that compile or time kernels, which version is there."""

import re
from functools import lru_cache
from importlib import import_module


def version_of(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return str(import_module(package).__version__)
    except ImportError:
        return None


@lru_cache
def triton_version() -> tuple[int, ...] | None:
    """(major, minor)."""
    version = version_of("triton")
    return None if version is None else tuple(map(int, re.findall(r"\d+", version)[:2]))


def has_descriptors() -> bool:
    """Whether Triton takes tensor descriptors that the host makes: from 3.4 on. Of no Triton, as of the newest."""
    version = triton_version()
    return version is None or version >= (3, 4)
