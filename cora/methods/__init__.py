"""Ways to recommend, by name: each a folder with its configuration and its model."""

from importlib import import_module
from typing import Any, NamedTuple


class Method(NamedTuple):
    """A way to recommend: what tables call it, and the `module:class` of its configuration and of its model.

    Of the task "rating" it scores a user and an item: `Config` is a MethodConfig; `Model`, a MethodModel, is built as
    Model(base_model, config, vectors), gives forward(batch) -> loss and scores, score(rows) and saves itself. Of the
    task "next item" it says which of all items comes next: `Config` is an AdapterConfig; `Model`, an AdaptedModel, is
    built as Model(base_model, config, codes, vectors), gives forward(batch) -> loss and rank(prompts). Both are loaded
    on first use.

    A method that needs no language model when it scores names a `module:function` besides that trains it on all rows:
    fit(splits, data, config, seed) -> model and its history, as the Trainer logs it. Its `Config` is a StoredConfig;
    its model gives score_rows(rows, splits) -> logits of a frame's rows, exported() and saves itself.
    """

    label: str
    config: str
    model: str
    trained_by: str | None = None
    task: str = "rating"

    @property
    def fit(self) -> Any:
        """What trains a method without a language model, None for the others."""
        return None if self.trained_by is None else _loaded(self.trained_by)

    @property
    def Config(self) -> Any:
        return _loaded(self.config)

    @property
    def tasks(self) -> Any:
        """Of a method of the task "next item" the module beside its model that makes its examples."""
        return import_module(f"{self.model.partition(':')[0].rpartition('.')[0]}.tasks")

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
    "llmcf": Method(
        "LLM-CF",
        "cora.methods.llmcf.config:LLMCFConfig",
        "cora.methods.llmcf.model:LLMCFModel",
        "cora.methods.llmcf.fitting:fit",
    ),
    "lcrec": Method(
        "LC-Rec",
        "cora.methods.lcrec.config:LCRecConfig",
        "cora.methods.lcrec.model:LCRecModel",
        task="next item",
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
