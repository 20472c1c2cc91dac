"""Modules loaded from files that no package holds, or once more."""

import importlib.util
from pathlib import Path
from types import ModuleType


def load_file(path: str | Path, name: str) -> ModuleType:
    """The file as a new module of that name, which is in no table of modules."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
