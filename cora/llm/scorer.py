"""Scorer: a frozen, patched causal LM that answers prompts, whatever their deltas come from."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from cora.llm.batches import Prompts, families_of, token_batches
from cora.llm.deltas import Delta
from cora.llm.head import AnswerHead
from cora.llm.packing import Packing, packed_arguments
from cora.llm.patch import patch
from cora.llm.patched_linear import LoRALinear
from cora.llm.pointwise import Pointwise
from cora.llm.resizing import refuse_resizing

Deltas = Mapping[str, Delta]


class Scorer:
    """score = logit(yes) - logit(no), or logit(yes) alone, of the next token after each prompt.

    base_model: a Hugging Face causal LM; until `remove` it is patched and frozen, and its output layer gives the logits
    of `answer_ids` (one or two token ids) at the last position of each prompt alone. target_modules, layers: the
    linears that deltas can change, as for `patch`.

    Raises TypeError for a base_model that is no PreTrainedModel, ValueError for answers, modules or layers that it does
    not have; it is then as it was.
    """

    def __init__(
        self,
        base_model: PreTrainedModel,
        answer_ids: Sequence[int],
        target_modules: Sequence[str],
        layers: Sequence[int] | None = None,
    ) -> None:
        self._head_name, head = _output_layer(base_model)
        _check_answer_ids(answer_ids, head)
        self.base = base_model
        self.patch = patch(base_model, target_modules, layers)
        if self._head_name in self.patch.layers:
            self.patch.remove()
            raise ValueError(f"target_modules: {self._head_name} is the output layer, which CoRA cannot adapt")
        self._trainable = [parameter for parameter in base_model.parameters() if parameter.requires_grad]
        base_model.requires_grad_(False)
        self._packing = Packing(base_model)
        self._pointwise = Pointwise(base_model, self.patch.calls)
        base_model.set_submodule(self._head_name, AnswerHead(head, answer_ids, self.patch.calls))
        refuse_resizing(base_model)

    @property
    def hidden_size(self) -> int:
        """The width of the hidden states that answers are read from."""
        return int(cast(Tensor, self.base.get_submodule(self._head_name).weight).shape[1])

    def prompts(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        prefix_lengths: Tensor | None = None,
        owners: Sequence[Hashable] | None = None,
    ) -> Prompts:
        """The prompts of a padded batch [B, T] in the form that is faster here: packed, or padded on the right.

        prefix_lengths: int64 [B], of prompts that are split, how many of their tokens come first; owners [B]: whose
        these are. Prompts of one owner that begin with the same tokens hold them once, where they can be packed.
        """
        packs = self.packs(attention_mask)
        if prefix_lengths is None:
            return (Prompts.packed if packs else Prompts.padded)(input_ids, attention_mask)
        if not packs:
            return Prompts.padded_in_two(input_ids, attention_mask, prefix_lengths)
        families = families_of(input_ids, attention_mask, prefix_lengths, owners)
        return Prompts.packed_in_families(input_ids, attention_mask, prefix_lengths, families)

    def packs(self, attention_mask: Tensor) -> bool:
        """Whether prompts of this mask go through the model packed, and share what they begin with."""
        return self._packing.serves(attention_mask)

    def answer(
        self,
        prompts: Prompts,
        deltas: Deltas | None,
        readout: Tensor | None = None,
        embedded: Tensor | None = None,
    ) -> Tensor:
        """The score of every prompt [B] fp32 with these deltas, one sample each; None for the base model's own.

        readout: [h], or [B, h] for one of each prompt, by which the hidden state before the answer is read in place of
        the answers' rows of the head.
        embedded: the embeddings of the prompts' tokens [..., h], in place of the model's own.
        """
        call = self.patch.call(deltas, None if deltas is None else prompts.cu_seqlens)
        packed = {}
        if prompts.position_ids is not None and prompts.cu_seqlens is not None:
            packed = packed_arguments(prompts.position_ids, prompts.cu_seqlens, prompts.parents)
        call = replace(call, within=call.cu_seqlens is not None and not packed)
        self.patch.calls.set(replace(call, answers=prompts.last, readout=readout))
        try:
            tokens = {"input_ids": prompts.input_ids} if embedded is None else {"inputs_embeds": embedded}
            answers = self.base(**tokens, use_cache=False, **packed).logits
        finally:
            self.patch.calls.set(call)
        answers = answers[:, 0].float()
        return answers[:, 0] - answers[:, 1] if answers.shape[1] == 2 else answers[:, 0]

    def score(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        deltas: Callable[[list[int], Prompts], Deltas | None],
        batch_size: int,
        readout: Callable[[list[int]], Tensor | None] | None = None,
        prefix_lengths: Tensor | None = None,
        owners: Sequence[Hashable] | None = None,
        embedded: Callable[[list[int], Prompts], Tensor | None] | None = None,
    ) -> Tensor:
        """The scores of any number of prompts [N] fp32, in batches, each as wide as its longest prompt. deltas: from
        the rows of a batch and its prompts, what adapts them; embedded: likewise their embeddings; readout:
        from the rows alone, what `answer` has by this name; prefix_lengths, owners: as in `prompts`.

        Batches are of prompts of similar length or, where these share what they begin with, of prompts that begin
        alike, as many tokens as batch_size prompts of the mean length have.
        """
        scores = torch.empty(len(input_ids), dtype=torch.float32, device=input_ids.device)
        lengths = attention_mask.sum(1)
        if prefix_lengths is None or not self.packs(attention_mask):
            by_length = lengths.argsort(stable=True).tolist()
            batches = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
        else:
            families = families_of(input_ids, attention_mask, prefix_lengths, owners)
            families.sort(key=lambda family: int(lengths[family[0]]))
            most = batch_size * -(-int(lengths.sum()) // max(1, len(lengths)))
            batches = token_batches(families, prefix_lengths.tolist(), lengths.tolist(), most)
        with tqdm(total=len(lengths), desc="scores", delay=2, leave=False) as bar:
            for rows in batches:
                used = attention_mask[rows].any(0).nonzero()
                columns = slice(int(used[0]), int(used[-1]) + 1)
                split = (
                    () if prefix_lengths is None else (prefix_lengths[rows], owners and [owners[row] for row in rows])
                )
                prompts = self.prompts(input_ids[rows, columns], attention_mask[rows, columns], *split)
                tokens = None if embedded is None else embedded(rows, prompts)
                read_by = None if readout is None else readout(rows)
                scores[rows] = self.answer(prompts, deltas(rows, prompts), read_by, tokens)
                bar.update(len(rows))
        return scores

    def remove(self) -> PreTrainedModel:
        """Gives the base model back as it was before: the very same modules, requires_grad included."""
        self.patch.remove()
        self._packing.remove()
        self._pointwise.remove()
        head = self.base.get_submodule(self._head_name)
        if isinstance(head, AnswerHead):
            self.base.set_submodule(self._head_name, head.head)
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        return self.base


def _output_layer(base_model: PreTrainedModel) -> tuple[str, nn.Linear]:
    """Name and module of the output layer of a base model."""
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
    return name, head


def _check_answer_ids(answer_ids: Sequence[int], head: nn.Linear) -> None:
    if max(answer_ids) >= head.out_features:
        raise ValueError(f"answer_ids: {max(answer_ids)} is outside the model's vocabulary of {head.out_features}")
