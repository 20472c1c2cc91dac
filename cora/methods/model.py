"""MethodModel: a frozen language model with the deltas of one method, trained, scored and saved alike for all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from cora.files import write_files
from cora.llm.batches import Prompts, check_labels, check_prefix_lengths, check_prompts
from cora.llm.deltas import Delta, drop_inputs
from cora.llm.loading import load_base
from cora.llm.modes import EvalMode
from cora.llm.patch import Patch
from cora.llm.scorer import Scorer
from cora.methods.card import model_card
from cora.methods.config import MethodConfig
from cora.methods.samples import Ids, Samples
from cora.tensors import Budget, described, misfit, read_tensors

if TYPE_CHECKING:
    from typing import Self

_CONFIG, _WEIGHTS, _CARD = "config.json", "model.safetensors", "README.md"
# Elements that a model may make while it is built, beyond twice those that are saved.
_SPARE = 2**20


@dataclass
class MethodOutput(ModelOutput):
    """loss [] fp32 where labels were given; logits [B] fp32, the score of each sample, above 0 for yes."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class MethodModel(nn.Module):
    """The score of a prompt by a frozen language model whose linears have the deltas that a method makes.

    score = logit(yes) - logit(no), or logit(yes) alone, of the next token after the prompt. A method is a subclass: it
    builds its trained parts after this constructor and makes the deltas of a batch in `deltas`. What it trains is fp32,
    whatever the base model's dtype, and is all that the state dict holds.

    base_model: a Hugging Face causal LM; it is patched and frozen until `unpatch`. config: needs `answer_ids`
    (`with_answer_ids`).

    Raises TypeError for a base_model that is no PreTrainedModel, ValueError for a configuration that does not fit it;
    the base model is then as it was.
    """

    Config: ClassVar[type[MethodConfig]]
    config: MethodConfig
    readout: nn.Parameter | None

    def __init__(self, base_model: PreTrainedModel, config: MethodConfig) -> None:
        super().__init__()
        if config.answer_ids is None:
            kind = type(config).__name__
            raise ValueError(f"config: answer_ids is not set; use {kind}.with_answer_ids(tokenizer)")
        self.scorer = Scorer(base_model, config.answer_ids, config.target_modules, config.layers)
        self.config = replace(config, base_model=config.base_model or base_model.config.name_or_path or None)
        self.base = base_model
        # [h], what the hidden state before the answer is read by; None for the difference of the answers' rows.
        self.register_parameter("readout", None)
        self._eval_mode = EvalMode()
        self.register_state_dict_post_hook(_drop_base)
        self.register_load_state_dict_post_hook(_allow_missing_base)

    @property
    def patch(self) -> Patch:
        """The handle of the patched language model."""
        return self.scorer.patch

    @property
    def ranks_from_the_start(self) -> bool:
        """Whether the scores rank before anything is learned, by more than the language model alone."""
        return False

    def told(self, samples: Samples) -> Samples:
        """The samples as the method is told of them: of some, in training, it may be told less. Of those that are so
        already nothing is changed."""
        return samples

    def deltas(self, samples: Samples) -> dict[str, Delta]:
        """{linear name: Delta} of a batch: what the language model is for these users and items."""
        raise NotImplementedError

    def embedded(self, input_ids: Tensor, samples: Samples) -> Tensor | None:
        """[..., h], what stands for the embeddings of the tokens of samples, one behind the other; None for those."""
        return None

    def at(self, done: float) -> None:
        """Told before every step of training which share of the steps is done, from 0 to 1."""

    def offsets(self, samples: Samples) -> Tensor | None:
        """[B], what is added to what the language model says of each sample; None for nothing."""
        return None

    @property
    def vector_width(self) -> int | None:
        """The width of the user_vectors that the method reads, None if it reads none."""
        return None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        user_ids: Ids,
        item_ids: Ids,
        labels: Tensor | None = None,
        user_vectors: Tensor | None = None,
        prefix_lengths: Tensor | None = None,
        item_vectors: Tensor | None = None,
    ) -> MethodOutput:
        """The score of each prompt for its user and item, and its loss.

        loss = mean binary cross-entropy with logits against labels. input_ids [B, T]; attention_mask [B, T] of 0 and 1,
        padded left or right, None for no padding; user_ids, item_ids: B ids each, int64 tensor or list, as in the
        embeddings; labels [B] of 0 and 1; user_vectors [B, d] float: e_u as of now, from a history encoder or `FoldIn`,
        in place of the embeddings' rows; item_vectors [B, d] likewise, e_i as it would be without the sample's label.
        prefix_lengths: int64 [B], where the method splits prompts, how many tokens of each come before the title asked
        about; prompts of one user that begin with the same tokens are then computed once up to there, on a CPU, and
        each by itself elsewhere.

        Raises ValueError for shapes that do not fit, for other labels and for a prompt without tokens.
        """
        samples = Samples(user_ids, item_ids, user_vectors, item_vectors=item_vectors)
        input_ids, attention_mask = self._checked(input_ids, attention_mask, samples)
        self._check_split(prefix_lengths, attention_mask)
        samples = self.told(samples)
        if labels is not None:
            check_labels(labels, len(input_ids))
        prompts = self.prompts(input_ids, attention_mask, samples, prefix_lengths)
        deltas, tokens = self._dropped(samples.of(prompts)), self.embedded(prompts.input_ids, samples)
        answers = self.scorer.answer(prompts, deltas, self.readout, tokens)
        logits = self.with_offsets(answers, samples)
        loss = None
        if labels is not None:
            loss = functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
        return MethodOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        user_ids: Ids,
        item_ids: Ids,
        user_vectors: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' generate, adapted to the users and items: [B, T] prompts, padded left. KV cache, beams and
        num_return_sequences work as there; dropout is off."""
        if self.config.splits_prompts:
            raise ValueError(
                "shared_prefix: text is generated by models that adapt a whole prompt alike, not by this one"
            )
        samples = Samples(user_ids, item_ids, user_vectors)
        tokens, attention_mask = self._checked(input_ids, attention_mask, samples)
        if not bool(attention_mask[:, -1].all()):
            raise ValueError("attention_mask: expected padding on the left, as generation continues the last position")
        settings = kwargs.get("generation_config") or self.base.generation_config
        copies = max(kwargs.get(name) or getattr(settings, name) or 1 for name in ("num_beams", "num_return_sequences"))
        with self._eval_mode.of(self):
            self.patch.set_deltas(self._dropped(samples.repeated(copies)))
            if (embedded := self.embedded(tokens, samples)) is not None:
                kwargs["inputs_embeds"] = embedded
            return cast(Any, self.base).generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    @torch.no_grad()
    def score(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        user_ids: Ids,
        item_ids: Ids,
        batch_size: int = 32,
        adapted: bool = True,
        user_vectors: Tensor | None = None,
        prefix_lengths: Tensor | None = None,
    ) -> Tensor:
        """The logits of `forward` for any number of prompts, [N] fp32: in batches of prompts of similar length, each as
        wide as its longest prompt, without autograd and dropout. torch.sigmoid makes probabilities of them. Not
        `adapted`, they are the base model's. With prefix_lengths, those that begin alike are in one batch, as many
        tokens as batch_size prompts have."""
        samples = Samples(user_ids, item_ids, user_vectors)
        input_ids, attention_mask = self._checked(input_ids, attention_mask, samples)
        self._check_split(prefix_lengths, attention_mask)
        with self._eval_mode.of(self):
            scores = self.scorer.score(
                input_ids,
                attention_mask,
                lambda rows, prompts: self._dropped(samples.rows(rows).of(prompts)) if adapted else None,
                batch_size,
                self.readout if adapted else None,
                prefix_lengths,
                None if prefix_lengths is None else samples.owners(),
                (lambda rows, prompts: self.embedded(prompts.input_ids, samples.rows(rows))) if adapted else None,
            )
            return self.with_offsets(scores, samples) if adapted else scores

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
        return self.scorer.remove()

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

    def _checked(self, input_ids: Tensor, attention_mask: Tensor | None, samples: Samples) -> tuple[Tensor, Tensor]:
        """The tokens, and the attention mask, of ones where there is none."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        check_prompts(input_ids, attention_mask)
        samples.check(len(input_ids), self.vector_width)
        return input_ids, attention_mask

    def with_offsets(self, answers: Tensor, samples: Samples) -> Tensor:
        """The scores [B] of samples whose answers [B] the language model gave."""
        offsets = self.offsets(samples)
        return answers if offsets is None else answers + offsets.to(answers)

    def prompts(
        self, input_ids: Tensor, attention_mask: Tensor, samples: Samples, prefix_lengths: Tensor | None = None
    ) -> Prompts:
        """The prompts of the samples as the language model gets them; it has the deltas of `samples.of` them."""
        owners = None if prefix_lengths is None else samples.owners()
        return self.scorer.prompts(input_ids, attention_mask, prefix_lengths, owners)

    def _check_split(self, prefix_lengths: Tensor | None, attention_mask: Tensor) -> None:
        if self.config.splits_prompts != (prefix_lengths is not None):
            wanted = "needed, one per prompt," if self.config.splits_prompts else "for a model trained"
            got = "none" if prefix_lengths is None else "them"
            raise ValueError(f"prefix_lengths: {wanted} with shared_prefix, got {got}")
        if prefix_lengths is not None:
            check_prefix_lengths(prefix_lengths, attention_mask)

    def _dropped(self, samples: Samples) -> dict[str, Delta]:
        """The deltas of a batch; in training with dropout of x in the low-rank path."""
        deltas = self.deltas(samples)
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
