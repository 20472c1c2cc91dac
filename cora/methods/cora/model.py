"""CoRAModel: a frozen causal LM, patched, with the generator and the matrices P that adapt it to a user and an item."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from cora.collaborative import CollaborativeEmbeddings
from cora.files import misfit, write_files
from cora.generators import build_generator
from cora.generators.pairs import Pairs
from cora.llm.batches import Ids, Prompts, as_list, check_batch, repeated
from cora.llm.deltas import Delta
from cora.llm.head import AnswerHead
from cora.llm.layer import LoRALinear
from cora.llm.loading import load_base
from cora.llm.packing import Packing, packed_arguments
from cora.llm.patch import patch
from cora.methods.cora.config import CoRAConfig

_CONFIG, _WEIGHTS, _EMBEDDINGS = "config.json", "model.safetensors", "embeddings.safetensors"


@dataclass
class CoRAOutput(ModelOutput):
    """loss [] fp32 where labels were given; logits [B] fp32, the score of each sample, above 0 for yes."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class CoRAModel(nn.Module):
    """y = x·Wᵀ + (alpha / r) · (x·A(u, i)) · P in every adapted linear of a frozen language model.

    A(u, i) [B, width, r] comes from the generator, which reads the frozen embeddings as `Pairs` gives them; one A
    serves all linears of one input width. P [r, out] is one zero parameter per linear, so the model starts as the base
    model. Generator and P are fp32 and alone are trained, whatever the base model's dtype.

    Dropout: the published layer drops features of x in the low-rank path. Here the rows of A are dropped, [B, width,
    1], once per forward and for each group of linears that share an input: the same as dropping features of x with
    one mask for all positions of a sample, at no pass over x, and the same when activation checkpointing recomputes
    the layer.

    base_model: a Hugging Face causal LM; it is patched and frozen until `unpatch`. config: needs `answer_ids`
    (CoRAConfig.with_answer_ids). state_dict holds generator and P only.

    Raises TypeError for a base_model that is no PreTrainedModel, ValueError for a configuration that does not fit it;
    the base model is then as it was.
    """

    def __init__(self, base_model: PreTrainedModel, config: CoRAConfig, embeddings: CollaborativeEmbeddings) -> None:
        super().__init__()
        head_name, head = _check_base(base_model, config)
        self.config = replace(config, base_model=config.base_model or base_model.config.name_or_path or None)
        self.embeddings = embeddings
        self.base = base_model
        self.patch = patch(base_model, config.target_modules, config.layers)
        try:
            if head_name in self.patch.layers:
                raise ValueError(f"target_modules: {head_name} is the output layer, which CoRA cannot adapt")
            widths = sorted({layer.in_features for layer in self.patch.layers.values()})
            self.generator = build_generator(config, embeddings.users.shape[1], widths).to(base_model.device)
        except Exception:
            self.patch.remove()
            raise
        self.projections = nn.ParameterDict(
            {
                _key(name): nn.Parameter(torch.zeros(config.r, layer.out_features, device=layer.weight.device))
                for name, layer in self.patch.layers.items()
            }
        )
        self.pairs = Pairs(embeddings).to(base_model.device)
        grouped = {name: names for names in self.patch.groups for name in names}
        self._inputs = list(dict.fromkeys(grouped.get(name, (name,)) for name in self.patch.layers))
        self._trainable = [parameter for parameter in base_model.parameters() if parameter.requires_grad]
        base_model.requires_grad_(False)
        self._packing = Packing(base_model)
        self._head_name = head_name
        base_model.set_submodule(head_name, AnswerHead(head, cast("tuple[int, ...]", config.answer_ids)))
        self.register_state_dict_post_hook(_drop_base)
        self.register_load_state_dict_post_hook(_allow_missing_base)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        user_ids: Ids,
        item_ids: Ids,
        labels: Tensor | None = None,
        user_vectors: Tensor | None = None,
    ) -> CoRAOutput:
        """The score of each prompt for its user and item, and its loss.

        score = logit(yes) - logit(no), or logit(yes) alone, of the next token after the prompt; loss = mean binary
        cross-entropy with logits against labels. input_ids [B, T]; attention_mask [B, T] of 0 and 1, padded left or
        right, None for no padding; user_ids, item_ids: B ids each, int64 tensor or list, as in the embeddings; labels
        [B] of 0 and 1; user_vectors [B, d] float: e_u as of now, from a history encoder or `FoldIn`, in place of the
        embeddings' rows.

        Raises ValueError for shapes that do not fit, for other labels and for a prompt without tokens.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        self._check(input_ids, attention_mask, user_ids, item_ids, user_vectors, labels)
        prompts = self._prompts(input_ids, attention_mask)
        self._adapt(user_ids, item_ids, user_vectors, prompts.cu_seqlens)
        logits = self._answer(prompts)
        loss = None
        if labels is not None:
            loss = functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
        return CoRAOutput(loss=loss, logits=logits)

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
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        self._check(input_ids, attention_mask, user_ids, item_ids, user_vectors)
        if not bool(attention_mask[:, -1].all()):
            raise ValueError("attention_mask: expected padding on the left, as generation continues the last position")
        settings = kwargs.get("generation_config") or self.base.generation_config
        copies = max(kwargs.get(name) or getattr(settings, name) or 1 for name in ("num_beams", "num_return_sequences"))
        with self._evaluating():
            vectors = None if user_vectors is None else user_vectors.repeat_interleave(copies, 0)
            self._adapt(repeated(user_ids, copies), repeated(item_ids, copies), vectors)
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
    ) -> Tensor:
        """The logits of `forward` for any number of prompts, [N] fp32: in batches of prompts of similar length, each as
        wide as its longest prompt, without autograd and dropout. torch.sigmoid makes probabilities of them. Not
        `adapted`, they are the base model's."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        self._check(input_ids, attention_mask, user_ids, item_ids, user_vectors)
        scores = torch.empty(len(input_ids), dtype=torch.float32, device=input_ids.device)
        by_length = attention_mask.sum(1).argsort(stable=True).tolist()
        with self._evaluating(), tqdm(total=len(by_length), desc="scores", delay=2) as bar:
            for start in range(0, len(by_length), batch_size):
                rows = by_length[start : start + batch_size]
                used = attention_mask[rows].any(0).nonzero()
                columns = slice(int(used[0]), int(used[-1]) + 1)
                users, items = ([ids[row] for row in rows] for ids in (as_list(user_ids), as_list(item_ids)))
                prompts = self._prompts(input_ids[rows, columns], attention_mask[rows, columns])
                if adapted:
                    vectors = None if user_vectors is None else user_vectors[rows]
                    self._adapt(users, items, vectors, prompts.cu_seqlens)
                else:
                    self.patch.set_deltas(None)
                scores[rows] = self._answer(prompts)
                bar.update(len(rows))
        return scores

    def unpatch(self) -> PreTrainedModel:
        """Gives the base model back as it was before: the very same modules, requires_grad included."""
        self.patch.remove()
        self._packing.remove()
        head = self.base.get_submodule(self._head_name)
        if isinstance(head, AnswerHead):
            self.base.set_submodule(self._head_name, head.head)
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        return self.base

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
        """Writes config.json, model.safetensors (generator and P) and embeddings.safetensors; the base model by name.

        All are written under other names and renamed when whole.
        """
        weights = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        write_files(
            Path(folder),
            {
                _EMBEDDINGS: self.embeddings.save,
                _WEIGHTS: lambda path: save_file(weights, path, metadata={"format": "pt"}),
                _CONFIG: lambda path: path.write_text(self.config.to_json_string(), encoding="utf-8"),
            },
        )

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, base_model: PreTrainedModel | None = None, **kwargs: Any
    ) -> "CoRAModel":
        """Reads what `save_pretrained` wrote, in eval mode. Without base_model, the recorded one is loaded; kwargs
        (dtype, device_map, …) go to its from_pretrained.

        Raises FileNotFoundError for a missing file, ValueError if the weights do not fit the base model.
        """
        folder = Path(folder)
        if missing := [name for name in (_CONFIG, _WEIGHTS, _EMBEDDINGS) if not (folder / name).is_file()]:
            raise FileNotFoundError(f"{folder}: not a saved CoRA model, {', '.join(missing)} missing")
        config = CoRAConfig.load(folder / _CONFIG)
        if base_model is None:
            if config.base_model is None:
                raise ValueError(f"base_model: {folder} does not name its base model; pass it")
            base_model = load_base(config.base_model, **kwargs)
        elif kwargs:
            raise ValueError(f"base_model was passed, so nothing is loaded with {', '.join(kwargs)}")
        weights = load_file(folder / _WEIGHTS)
        model = cls(base_model, config, CollaborativeEmbeddings.load(folder / _EMBEDDINGS))
        if problem := misfit(weights, model.state_dict()):
            model.unpatch()
            raise ValueError(f"{folder / _WEIGHTS} does not fit {type(base_model).__name__}: {problem}")
        model.load_state_dict(weights)
        return model.eval()

    @property
    def _head(self) -> AnswerHead:
        return cast(AnswerHead, self.base.get_submodule(self._head_name))

    def _prompts(self, input_ids: Tensor, attention_mask: Tensor) -> Prompts:
        kind = Prompts.packed if self._packing.serves(attention_mask) else Prompts.padded
        return kind(input_ids, attention_mask)

    def _answer(self, prompts: Prompts) -> Tensor:
        """The score of every prompt [B] fp32 with the deltas that are set."""
        packed = {}
        if prompts.position_ids is not None and prompts.cu_seqlens is not None:
            packed = packed_arguments(prompts.position_ids, prompts.cu_seqlens)
        head = self._head
        head.rows = prompts.last
        try:
            answers = self.base(input_ids=prompts.input_ids, use_cache=False, **packed).logits
        finally:
            head.rows = None
        answers = answers[:, 0].float()
        return answers[:, 0] - answers[:, 1] if answers.shape[1] == 2 else answers[:, 0]

    def _check(
        self, ids: Tensor, mask: Tensor, users: Ids, items: Ids, vectors: Tensor | None, labels: Tensor | None = None
    ) -> None:
        check_batch(ids, mask, users, items, labels, vectors, self.embeddings.users.shape[1])

    def _adapt(
        self, user_ids: Ids, item_ids: Ids, user_vectors: Tensor | None = None, cu_seqlens: Tensor | None = None
    ) -> None:
        """Generates A for each sample and sets it, with P, on the patched linears."""
        users = self.embeddings.lookup_users(user_ids) if user_vectors is None else user_vectors.clone()
        if self.training and self.config.user_dropout > 0:
            unknown = len(self.embeddings.users) if user_vectors is None else self.pairs.user_mean.to(users)
            users[torch.rand(len(users)) < self.config.user_dropout] = unknown
        pair = self.pairs(users, self.embeddings.lookup_items(item_ids))
        with torch.autocast(self.pairs.users.device.type, enabled=False):
            generated = self.generator(*pair)
        deltas = {}
        for names in self._inputs:
            lora_a = generated[self.patch.layers[names[0]].in_features]
            if self.training and self.config.dropout > 0:
                lora_a = lora_a * functional.dropout(torch.ones_like(lora_a[..., :1]), self.config.dropout)
            for name in names:
                deltas[name] = Delta(lora_a, self.projections[_key(name)], self.config.scaling)
        self.patch.set_deltas(deltas, cu_seqlens)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Eval mode, and afterwards every module's own mode again."""
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


def _check_base(base_model: PreTrainedModel, config: CoRAConfig) -> tuple[str, nn.Linear]:
    """Name and module of the output layer of a base model that the configuration fits."""
    if not isinstance(base_model, PreTrainedModel):
        raise TypeError(f"base_model: expected a transformers causal LM, got {type(base_model).__name__}")
    head = base_model.get_output_embeddings()
    name = next((name for name, module in base_model.named_modules() if module is head), None)
    if isinstance(head, LoRALinear | AnswerHead):
        raise ValueError(f"base_model: already patched ({name}); unpatch it first")
    if name is None or type(head) is not nn.Linear:
        raise ValueError(
            f"base_model: {type(base_model).__name__} has no plain linear output layer to read answers from"
        )
    if config.answer_ids is None:
        raise ValueError("config: answer_ids is not set; use CoRAConfig.with_answer_ids(tokenizer)")
    if max(config.answer_ids) >= head.out_features:
        raise ValueError(
            f"answer_ids: {max(config.answer_ids)} is outside the model's vocabulary of {head.out_features}"
        )
    return name, head


def _key(name: str) -> str:
    """A module's name as the name of a parameter, which may hold no dot."""
    return name.replace(".", "/")


def _is_base(key: str) -> bool:
    return key.startswith("base.") or ".base." in key


def _drop_base(module: nn.Module, state: dict[str, Tensor], prefix: str, local_metadata: Any) -> None:
    for key in [key for key in state if key.startswith(prefix + "base.")]:
        del state[key]


def _allow_missing_base(module: nn.Module, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not _is_base(key)]
