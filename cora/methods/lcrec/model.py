"""LCRecModel: a frozen causal LM with one LoRA, tokens of its own for codes, and maybe a LoRA for each user."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from cora.codes import ItemCodes
from cora.codes.search import Ranked, beam_search
from cora.collaborative import CollaborativeEmbeddings
from cora.generators import Pairs, generator_class
from cora.llm.batches import Prompts, check_prompts
from cora.llm.deltas import Delta
from cora.llm.packing import Packing, packed_arguments
from cora.llm.patch import Patch, patch
from cora.llm.patched_linear import LoRALinear
from cora.llm.pointwise import Pointwise
from cora.methods.adapted_model import AdaptedModel
from cora.methods.lcrec.config import LCRecConfig
from cora.methods.lcrec.decoding import TreeDecoder
from cora.methods.lcrec.tasks import IGNORED
from cora.methods.lcrec.vocabulary import CodeTokens
from cora.methods.shared_lora import SharedLoRA

_EMBEDDINGS = "embeddings.safetensors"


@dataclass
class LCRecOutput(ModelOutput):
    """loss [] fp32: the mean cross-entropy of the targets."""

    loss: Tensor | None = None


class LCRecModel(AdaptedModel, SharedLoRA):
    """y = x·Wᵀ + (alpha / r) · (x·A)·B in every adapted linear, A [K, r] and B [r, N] learned; and CodeTokens.

    With a generator every user has a further LoRA of rank `user_rank` beside that one: A = [A | A(u)], B = [B ; P],
    A(u) generated from their collaborative vector and the mean item, P [user_rank, N] learned and zero at the start.

    base_model: a Hugging Face causal LM; it is patched and frozen until `unpatch`, its vocabulary and its head stay as
    they are. codes: of the items. embeddings: needed with a generator; saved with the model and not trained.
    Scaling or capping that some architectures put behind their head is not applied to targets of text.

    Raises TypeError for a base_model that is no PreTrainedModel, ValueError for a configuration that does not fit it;
    the base model is then as it was.
    Source: Zheng et al., LC-Rec, ICDE 2024, arXiv 2311.09049; the user's LoRA: Liu et al., CoRA, AAAI 2025.
    """

    Config: ClassVar[type[LCRecConfig]] = LCRecConfig

    def __init__(
        self,
        base_model: PreTrainedModel,
        config: LCRecConfig,
        codes: ItemCodes,
        embeddings: CollaborativeEmbeddings | None = None,
    ) -> None:
        if not isinstance(base_model, PreTrainedModel):
            raise TypeError(f"base_model: expected a transformers causal LM, got {type(base_model).__name__}")
        if (config.generator is None) != (embeddings is None):
            raise ValueError(
                f"embeddings: needed with a generator and with none else, got generator {config.generator}"
            )
        handle = patch(base_model, config.target_modules, config.layers)
        if isinstance(base_model.get_output_embeddings(), LoRALinear):
            handle.remove()
            raise ValueError("target_modules: among them is the output layer, which LC-Rec cannot adapt")
        super().__init__(base_model, config)
        self._patch = handle
        self._trainable = [one for one in base_model.parameters() if one.requires_grad]
        base_model.requires_grad_(False)
        self._packing = Packing(base_model)
        self._pointwise = Pointwise(base_model, handle.calls)
        self.codes, self.embeddings = codes, embeddings
        with self.or_unpatched():
            self.tokens = CodeTokens(base_model, codes)
            self.make_lora(handle.layers, config.r, base_model.device)
            if config.generator is not None and embeddings is not None:
                self.pairs = Pairs(embeddings).to(base_model.device)
                make = generator_class(config.generator)
                width = embeddings.users.shape[1]
                made = make(make.Options(), width, handle.layers, config.user_rank, config.scaling)
                self.generator = made.to(base_model.device)

    @property
    def patch(self) -> Patch:
        return self._patch

    def unpatch(self) -> PreTrainedModel:
        self._patch.remove()
        self._packing.remove()
        self._pointwise.remove()
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        base: PreTrainedModel = self.base
        return base

    def deltas(self, user_vectors: Tensor | None) -> dict[str, Delta]:
        """The shared LoRA, and with a generator that of each of the users [B, d] beside it."""
        shared = self.lora_deltas(self.patch.layers, self.config.scaling)
        if self.config.generator is None:
            return shared
        if user_vectors is None or self.embeddings is None:
            raise ValueError("user_vectors: expected [B, d] with a generator, one per sequence, got none")
        nobody = torch.full((len(user_vectors),), len(self.embeddings.items))  # the mean item
        with torch.autocast(self.base.device.type, enabled=False):
            own = self.generator(*self.pairs(user_vectors, nobody))
        return {name: _beside(shared[name], own[name]) for name in shared}

    def hidden(self, input_ids: Tensor, attention_mask: Tensor, deltas: Mapping[str, Delta] | None) -> Tensor:
        """[M, h]: the last hidden state of every token of sequences [B, T] that is no padding, in their order. The
        sequences go through the model packed where they can, else padded on the right as they come."""
        if self._packing.serves(attention_mask):
            packed = Prompts.packed(input_ids, attention_mask)
            assert packed.position_ids is not None and packed.cu_seqlens is not None
            self.patch.set_deltas(deltas, None if deltas is None else packed.cu_seqlens)
            arguments = packed_arguments(packed.position_ids, packed.cu_seqlens, None)
            return self._run(self.tokens.embedded(self.base, packed.input_ids), **arguments)[0]
        self.patch.set_deltas(deltas)
        return self._run(self.tokens.embedded(self.base, input_ids))[attention_mask.bool()]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        user_vectors: Tensor | None = None,
    ) -> LCRecOutput:
        """loss = the mean over all targets of -log p(target | tokens before it).

        input_ids int64 [B, T]: the language model's tokens and, from its vocabulary's size on, those of codes;
        attention_mask [B, T] of 0 and 1, padded on the right; labels int64 [B, T]: the token that follows each
        position, -100 where that is no target. p is a softmax over the codes that items have behind the codes before
        the target, or, with normalise="level", over all of its level; over the vocabulary where the target is text.
        user_vectors [B, d] with a generator.

        Raises ValueError for shapes that do not fit, labels without a target and, unless normalise is "level", a code
        as a target that no item has behind the codes before it.
        """
        check_prompts(input_ids, attention_mask)
        if labels.shape != input_ids.shape:
            raise ValueError(f"labels: expected {list(input_ids.shape)}, as input_ids has, got {list(labels.shape)}")
        used = attention_mask.bool()
        targets = labels[used]
        asked = targets != IGNORED
        if not bool(asked.any()):
            raise ValueError("labels: expected a target at one position at least, got none")
        hidden = self.hidden(input_ids, attention_mask, self.dropped(self.deltas(user_vectors)))[asked]
        parents = self.tokens.parents(input_ids, labels)[used][asked]
        return LCRecOutput(loss=self._loss(hidden, targets[asked], parents))

    def rank(
        self,
        prompts: Sequence[Sequence[int]],
        user_vectors: Tensor | None = None,
        seen: Tensor | None = None,
        width: int | None = None,
        batch_size: int = 16,
    ) -> Ranked:
        """The items that are most probable behind each prompt, by a beam over the items' codes; dropout is off.

        prompts: token ids, which end where a code begins. user_vectors [N, d] with a generator. seen: bool [N, items],
        those not to be given. width: of the beam, None for the configuration's. Gives N rows, in the order of the
        prompts; see `beam_search`.
        """
        return self.rank_all(prompts, user_vectors, [seen], width, batch_size)[0]

    @torch.no_grad()
    def rank_all(
        self,
        prompts: Sequence[Sequence[int]],
        user_vectors: Tensor | None,
        seens: Sequence[Tensor | None],
        width: int | None = None,
        batch_size: int = 16,
    ) -> list[Ranked]:
        """What `rank` gives for each of several `seen`, every prompt computed once for all of them."""
        width = min(width or self.config.beam, self.codes.trie.items)
        shape = len(prompts), width
        found = [Ranked(torch.full(shape, -1), torch.full(shape, -torch.inf)) for _ in seens]
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        with self._eval_mode.of(self), tqdm(total=len(prompts), desc="ranked", delay=2, leave=False) as bar:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                deltas = self.deltas(None if user_vectors is None else user_vectors[rows])
                decoder = TreeDecoder(self, [prompts[row] for row in rows], deltas)
                for seen, into in zip(seens, found, strict=True):
                    out = None if seen is None else seen[rows]
                    ranked = beam_search(self.codes.trie, decoder, len(rows), width, self.config.normalise, out)
                    into.items[rows], into.scores[rows] = ranked
                bar.update(len(rows))
        return found

    def _run(self, embedded: Tensor, **arguments: Any) -> Tensor:
        found: Tensor = self.base.base_model(inputs_embeds=embedded, use_cache=False, **arguments).last_hidden_state
        return found

    def _loss(self, hidden: Tensor, targets: Tensor, parents: Tensor) -> Tensor:
        """The mean cross-entropy of targets [P] behind hidden states [P, h] and nodes [P] of the trie."""
        place = targets - self.tokens.first
        total = hidden.new_zeros((), dtype=torch.float32)
        for level in range(self.tokens.levels):
            rows = (place >= 0) & (place // self.tokens.size == level)
            if bool(rows.any()):
                codes, logits = place[rows] % self.tokens.size, self.tokens.logits(hidden[rows], level)
                if self.config.normalise == "children":
                    logits = self._among_children(logits, codes, parents[rows], level)
                total = total + functional.cross_entropy(logits, codes, reduction="sum")
        if bool((place < 0).any()):
            logits = self.base.get_output_embeddings()(hidden[place < 0]).float()
            total = total + functional.cross_entropy(logits, targets[place < 0], reduction="sum")
        return total / len(targets)

    def _among_children(self, logits: Tensor, codes: Tensor, parents: Tensor, level: int) -> Tensor:
        """Logits [P, K], -inf for codes that no item has behind the nodes."""
        there = self.tokens.trie_level(level)[parents.clamp(min=0)].where(parents[:, None] >= 0, -1)
        if not bool((there.gather(1, codes[:, None]) >= 0).all()):
            raise ValueError("labels: expected codes of items, got one that no item has behind the codes before it")
        return logits.masked_fill(there < 0, -torch.inf)

    @classmethod
    def _file_names(cls) -> tuple[str, ...]:
        return *super()._file_names(), *ItemCodes.FILES

    def _own_files(self) -> dict[str, Callable[[Path], object]]:
        return self.codes.writers() | ({} if self.embeddings is None else {_EMBEDDINGS: self.embeddings.save})

    @classmethod
    def _built(cls, base_model: PreTrainedModel, config: Any, folder: Path) -> "LCRecModel":
        embeddings = None if config.generator is None else CollaborativeEmbeddings.load(folder / _EMBEDDINGS)
        return cls(base_model, config, ItemCodes.load(folder), embeddings)


def _beside(shared: Delta, own: Delta) -> Delta:
    """Two deltas of one linear and one scaling as one: x·A·B + x·A(u)·P."""
    batch = len(own.lora_a)
    lora_a = torch.cat([shared.lora_a.expand(batch, -1, -1), own.lora_a], -1)
    if own.lora_b.dim() == 2:
        return Delta(lora_a, torch.cat([shared.lora_b, own.lora_b], 0), shared.scaling)
    return Delta(lora_a, torch.cat([shared.lora_b.expand(batch, -1, -1), own.lora_b], 1), shared.scaling)
