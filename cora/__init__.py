"""CoRA: a frozen language model told about a user and an item through its weights."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import cora_kernels.waiting  # noqa: F401  Before anything imports torch.

# isort: split
# The function takes the name of its module, so it must be imported here: later, the name would mean the module.
from cora.llm.patch import Patch, patch
from cora.methods.cora.config import CoRAConfig

if TYPE_CHECKING:
    from cora.export.bank import AdapterBank, load_bank
    from cora.methods.cora.model import CoRAModel

__all__ = ["AdapterBank", "CoRAConfig", "CoRAModel", "Patch", "load_bank", "patch"]

_MODULES = {
    "AdapterBank": "cora.export.bank",
    "CoRAModel": "cora.methods.cora.model",
    "load_bank": "cora.export.bank",
}


def __getattr__(name: str) -> Any:
    # On first use: `import cora.data` must not wait for the models of transformers.
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'cora' has no attribute {name!r}")
