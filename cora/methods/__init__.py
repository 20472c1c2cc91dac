"""Ways to recommend with a language model, by name: each a folder with its configuration and its model."""

from importlib import import_module
from typing import Any, NamedTuple


class Method(NamedTuple):
    """A way to recommend: what tables call it, and the `module:class` of its configuration and of its model.

    `Config` is a MethodConfig; `Model`, a MethodModel, is built as Model(base_model, config, vectors), gives
    forward(batch) -> loss and scores, score(rows) and saves itself. Both are loaded on first use.
    """

    label: str
    config: str
    model: str

    @property
    def Config(self) -> Any:
        return _loaded(self.config)

    @property
    def Model(self) -> Any:
        return _loaded(self.model)


METHODS = {
    "cora": Method("CoRA", "cora.methods.cora.config:CoRAConfig", "cora.methods.cora.model:CoRAModel"),
    "tallrec": Method(
        "TALLRec", "cora.methods.tallrec.config:TALLRecConfig", "cora.methods.tallrec.model:TALLRecModel"
    ),
    "collm": Method("CoLLM", "cora.methods.collm.config:CoLLMConfig", "cora.methods.collm.model:CoLLMModel"),
    "reclora": Method(
        "RecLoRA", "cora.methods.reclora.config:RecLoRAConfig", "cora.methods.reclora.model:RecLoRAModel"
    ),
}


def load_method(name: str) -> Method:
    """The method of that name. Raises ValueError for a name that METHODS does not have."""
    if name not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


def _loaded(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
