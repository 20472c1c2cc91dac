"""CoRA: a frozen language model told about a user and an item through its weights."""

from typing import TYPE_CHECKING, Any

from cora.config import CoRAConfig

# The function takes the name of its module, so it must be imported here: later, the name would mean the module.
from cora.patch import Patch, patch

if TYPE_CHECKING:
    from cora.model import CoRAModel

__all__ = ["CoRAConfig", "CoRAModel", "Patch", "patch"]


def __getattr__(name: str) -> Any:
    # On first use: `import cora.data` must not wait for the models of transformers.
    if name == "CoRAModel":
        from cora.model import CoRAModel

        return CoRAModel
    raise AttributeError(f"module 'cora' has no attribute {name!r}")
