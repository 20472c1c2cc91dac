"""AdaptedModel: a frozen language model and what a method trains beside it, saved and loaded alike for all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from cora.files import write_files
from cora.llm.deltas import Delta, drop_inputs
from cora.llm.loading import load_base
from cora.llm.modes import EvalMode
from cora.llm.patch import Patch
from cora.methods.card import model_card
from cora.methods.config import AdapterConfig
from cora.tensors import Budget, described, misfit, read_tensors

if TYPE_CHECKING:
    from typing import Self

_CONFIG, _WEIGHTS, _CARD = "config.json", "model.safetensors", "README.md"
# Elements that a model may make while it is built, beyond twice those that are saved.
_SPARE = 2**20


class AdaptedModel(nn.Module):
    """A patched, frozen language model `base` with what is trained beside it: fp32, and all that the state dict holds.

    A subclass patches the base model, gives the handle as `patch` and takes it away in `unpatch`.
    """

    Config: ClassVar[type[AdapterConfig]]

    def __init__(self, base_model: PreTrainedModel, config: AdapterConfig) -> None:
        super().__init__()
        self.config: Any = replace(config, base_model=config.base_model or base_model.config.name_or_path or None)
        self.base = base_model
        self._eval_mode = EvalMode()
        self.register_state_dict_post_hook(_drop_base)
        self.register_load_state_dict_post_hook(_allow_missing_base)

    @property
    def patch(self) -> Patch:
        """The handle of the patched language model."""
        raise NotImplementedError

    @contextmanager
    def or_unpatched(self) -> Iterator[None]:
        """Around what a method builds: gives the base model back if that fails."""
        try:
            yield
        except Exception:
            self.unpatch()
            raise

    def unpatch(self) -> PreTrainedModel:
        """Gives the base model back as it was before: the very same modules, requires_grad included."""
        raise NotImplementedError

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Recomputes each layer of the base model in backward. Raises ValueError for use_reentrant=True."""
        options = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        if options["use_reentrant"]:
            raise ValueError("use_reentrant: expected False; reentrant checkpointing loses the gradients of the deltas")
        # Before transformers 5.21 the base model has the older name alone.
        enable = getattr(self.base, "activation_checkpointing_enable", self.base.gradient_checkpointing_enable)
        enable(options, **kwargs)
        # Reentrant checkpointing alone needs the embeddings to require a gradient, which costs the first layer its dx.
        self.base.disable_input_require_grads()

    def activation_checkpointing_disable(self) -> None:
        getattr(self.base, "activation_checkpointing_disable", self.base.gradient_checkpointing_disable)()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """transformers' older name of `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        self.activation_checkpointing_disable()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json, model.safetensors (what is trained) and the method's own files; the base model by name.
        README.md is its model card, unless the folder has one already.

        All are written under other names and renamed when whole. Of a model that FSDP2 has sharded every process calls
        this, and the first of them writes.
        """
        state = self.state_dict()
        weights = {name: _whole(tensor.detach()).contiguous() for name, tensor in state.items()}
        is_sharded = any(map(_is_sharded, state.values()))
        card = model_card(self.config, type(self), sum(one.numel() for one in weights.values()))
        with_card = {} if (Path(folder) / _CARD).exists() else {_CARD: lambda path: path.write_text(card, "utf-8")}
        if not is_sharded or torch.distributed.get_rank() == 0:
            write_files(
                Path(folder),
                {
                    **with_card,
                    **self._own_files(),
                    _WEIGHTS: lambda path: save_file(weights, path, metadata={"format": "pt"}),
                    _CONFIG: lambda path: path.write_text(self.config.to_json_string(), encoding="utf-8"),
                },
            )
        if is_sharded:
            torch.distributed.barrier()

    @classmethod
    def from_pretrained(cls, folder: str | Path, base_model: PreTrainedModel | None = None, **kwargs: Any) -> "Self":
        """Reads what `save_pretrained` wrote, in eval mode. Without base_model, the recorded one is loaded; kwargs
        (dtype, device_map, …) go to its from_pretrained.

        Raises FileNotFoundError for a missing file, ValueError for a folder of another format or another method, and if
        the weights do not fit the base model.
        """
        folder = Path(folder)
        if missing := [name for name in cls._file_names() if not (folder / name).is_file()]:
            label = cls.Config.method
            raise FileNotFoundError(f"{folder}: not a saved {label} model, {', '.join(missing)} missing")
        config = cls.Config.load(folder / _CONFIG)
        saved = described(folder / _WEIGHTS)
        if base_model is None:
            if config.base_model is None:
                raise ValueError(f"base_model: {folder} does not name its base model; pass it")
            base_model = load_base(config.base_model, **kwargs)
        elif kwargs:
            raise ValueError(f"base_model was passed, so nothing is loaded with {', '.join(kwargs)}")
        model = cls._built_within(base_model, config, folder, sum(prod(one.shape) for one in saved.values()))
        if problem := misfit(saved, model.state_dict()):
            model.unpatch()
            raise ValueError(f"{folder / _WEIGHTS} does not fit {type(base_model).__name__}: {problem}")
        model.load_state_dict(read_tensors(folder / _WEIGHTS))
        return model.eval()

    @classmethod
    def _built_within(cls, base_model: PreTrainedModel, config: Any, folder: Path, elements: int) -> "Self":
        """The model of a saved folder, its weights, which have so many elements, not yet loaded: so no larger one."""
        with Budget(f"{folder / _CONFIG} does not fit {_WEIGHTS}", 2 * elements + _SPARE):
            return cls._built(base_model, config, folder)

    @classmethod
    def _file_names(cls) -> tuple[str, ...]:
        return _CONFIG, _WEIGHTS

    def _own_files(self) -> dict[str, Callable[[Path], object]]:
        """What is saved besides, by file name: a writer each."""
        return {}

    @classmethod
    def _built(cls, base_model: PreTrainedModel, config: Any, folder: Path) -> "Self":
        """The model of a saved folder, its weights not yet loaded."""
        raise NotImplementedError

    def dropped(self, deltas: dict[str, Delta]) -> dict[str, Delta]:
        """The deltas of a batch; in training with dropout of x in the low-rank path."""
        if self.training and self.config.dropout > 0:
            return drop_inputs(deltas, self.patch.inputs, self.config.dropout)
        return deltas


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor, whose module not every build of torch has


def _whole(tensor: Tensor) -> Tensor:
    """The tensor, of a sharded one with the shards of all processes."""
    return cast(Any, tensor).full_tensor() if _is_sharded(tensor) else tensor


def _is_base(key: str) -> bool:
    return key.startswith("base.") or ".base." in key


def _drop_base(module: nn.Module, state: dict[str, Tensor], prefix: str, local_metadata: Any) -> None:
    for key in [key for key in state if key.startswith(prefix + "base.")]:
        del state[key]


def _allow_missing_base(module: nn.Module, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not _is_base(key)]
