"""MethodModel: a frozen language model with the deltas of one method, trained, scored and saved alike for all."""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from cora.llm.batches import Prompts, check_labels, check_prefix_lengths, check_prompts
from cora.llm.deltas import Delta
from cora.llm.patch import Patch
from cora.llm.scorer import Scorer
from cora.methods.adapted_model import AdaptedModel
from cora.methods.config import MethodConfig
from cora.methods.samples import Ids, Samples


@dataclass
class MethodOutput(ModelOutput):
    """loss [] fp32 where labels were given; logits [B] fp32, the score of each sample, above 0 for yes."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class MethodModel(AdaptedModel):
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
        if config.answer_ids is None:
            kind = type(config).__name__
            raise ValueError(f"config: answer_ids is not set; use {kind}.with_answer_ids(tokenizer)")
        scorer = Scorer(base_model, config.answer_ids, config.target_modules, config.layers)
        super().__init__(base_model, config)
        self.scorer = scorer
        # [h], what the hidden state before the answer is read by; None for the difference of the answers' rows.
        self.register_parameter("readout", None)

    @property
    def patch(self) -> Patch:
        """The handle of the patched language model."""
        return self.scorer.patch

    def unpatch(self) -> PreTrainedModel:
        return self.scorer.remove()

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

    def gate_weights(self, samples: Samples) -> dict[str, Tensor]:
        """{linear name: α [B, n]}: how much of each of n learned LoRAs every sample gets, where a method mixes some."""
        return {}

    def watched(self, samples: Samples) -> dict[str, float]:
        """What is logged by name with every validation beside its loss: whether a gate has collapsed."""
        return {}

    def readouts(self, samples: Samples) -> Tensor | None:
        """[h] or [B, h], what the hidden states before the answers are read by; None for the head's rows."""
        return self.readout

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
        about; prompts of one user that begin with the same tokens are then computed once up to there where prompts are
        packed, and each by itself elsewhere.

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
        answers = self.scorer.answer(prompts, deltas, self.readouts(samples), tokens)
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
        item_vectors: Tensor | None = None,
    ) -> Tensor:
        """The logits of `forward` for any number of prompts, [N] fp32: in batches of prompts of similar length, each as
        wide as its longest prompt, without autograd and dropout. torch.sigmoid makes probabilities of them. Not
        `adapted`, they are the base model's. With prefix_lengths, those that begin alike are in one batch, as many
        tokens as batch_size prompts have."""
        samples = Samples(user_ids, item_ids, user_vectors, item_vectors=item_vectors)
        input_ids, attention_mask = self._checked(input_ids, attention_mask, samples)
        self._check_split(prefix_lengths, attention_mask)
        with self._eval_mode.of(self):
            scores = self.scorer.score(
                input_ids,
                attention_mask,
                lambda rows, prompts: self._dropped(samples.rows(rows).of(prompts)) if adapted else None,
                batch_size,
                (lambda rows: self.readouts(samples.rows(rows))) if adapted else None,
                prefix_lengths,
                None if prefix_lengths is None else samples.owners(),
                (lambda rows, prompts: self.embedded(prompts.input_ids, samples.rows(rows))) if adapted else None,
            )
            return self.with_offsets(scores, samples) if adapted else scores

    def _dropped(self, samples: Samples) -> dict[str, Delta]:
        return self.dropped(self.deltas(samples))

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
