"""A language model whose output layer is replaced must not have its vocabulary resized meanwhile."""

from typing import Any, NoReturn

from torch import nn

_METHOD = "resize_token_embeddings"


def refuse_resizing(model: nn.Module) -> None:
    """Until `allow_resizing`, transformers' resize_token_embeddings of a model with an output layer of its own raises.

    It would put a new output layer in place of the replaced one, and not before it had changed the embeddings. Where
    the two are tied it changes the weight alone, and may.
    """
    tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
    if hasattr(model, _METHOD) and not tied:
        model.__dict__[_METHOD] = _refuse


def allow_resizing(model: nn.Module) -> None:
    model.__dict__.pop(_METHOD, None)


def _refuse(*args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError(
        f"{_METHOD}: the output layer is patched, and resizing would put another in its place; remove the patch first"
    )
