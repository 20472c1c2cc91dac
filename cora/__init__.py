"""CoRA: a frozen language model told about a user and an item through its weights."""

from typing import TYPE_CHECKING, Any

# The function takes the name of its module, so it must be imported here: later, the name would mean the module.
from cora.llm.patch import Patch, patch
from cora.methods.cora.config import CoRAConfig

if TYPE_CHECKING:
    from cora.methods.cora.model import CoRAModel

__all__ = ["CoRAConfig", "CoRAModel", "Patch", "patch"]


def __getattr__(name: str) -> Any:
    # On first use: `import cora.data` must not wait for the models of transformers.
    if name == "CoRAModel":
        from cora.methods.cora.model import CoRAModel

        return CoRAModel
    raise AttributeError(f"module 'cora' has no attribute {name!r}")
