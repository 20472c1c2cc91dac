"""CoLLMConfig: the knobs of the baseline of soft tokens, as published where that is said."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from cora.checks import check_int, check_share
from cora.methods.config import PairConfig
from cora.prompts.template import PromptTemplate

if TYPE_CHECKING:
    from typing import Self

    from transformers import PreTrainedTokenizerBase

SLOT = "<slot>"
_TEXT = (
    "#Question: A user has given high ratings to the following movies: {history}. Additionally, we have information "
    f"about the user's preferences encoded in the feature {SLOT}. Using all available information, make a prediction "
    f"about whether the user would enjoy the movie titled {{title}} with the feature {SLOT}? Answer with "
    '"Yes" or "No". \n#Answer:'
)


@dataclass
class CoLLMConfig(PairConfig):
    """The fields of MethodConfig and PairConfig, one LoRA shared by all samples, and

    prompt       holds "<slot>" twice: where the user's soft token stands, and where the item's does
    text_share   share of the steps that train the LoRA, with the slots left as they are; the steps behind them train
                 the projection of the vectors, with the LoRA as it is: the two stages published
    mid_factor   width of the projection's hidden layer over that of the vectors
    slot_token, slot_id
                 the tokenizer's token in the slots, from `with_answer_ids`

    r 8, alpha 16 and dropout 0.05 on q and v, the prompt and mid_factor 10 are those published.

    Raises TypeError or ValueError that names the field.
    """

    method: ClassVar[str] = "collm"

    r: int = 8
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    prompt: str = _TEXT
    text_share: float = 0.5
    mid_factor: int = 10
    slot_token: str | None = None
    slot_id: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("text_share", self.text_share)
        check_int("mid_factor", self.mid_factor, at_least=1)
        if self.prompt.count(SLOT) != 2:
            raise ValueError(f"prompt: expected {SLOT} twice, got it {self.prompt.count(SLOT)} times")

    @property
    def template(self) -> PromptTemplate:
        token = (self.slot_token or SLOT).replace("{", "{{").replace("}", "}}")
        return PromptTemplate(self.prompt.replace(SLOT, token), self.no_history)

    def with_answer_ids(self, tokenizer: "PreTrainedTokenizerBase") -> "Self":
        """A copy with the token ids of the answers, and with the tokenizer's unknown token in the slots, or its
        end-of-text token, or that for padding: the first of them that a prompt does not hold elsewhere.

        Raises ValueError for an answer that is not exactly one token, and for a tokenizer without such a token.
        """
        named = (tokenizer.unk_token, tokenizer.eos_token, tokenizer.pad_token)
        for token in dict.fromkeys(str(one) for one in named if one is not None):
            slot_id = int(tokenizer.convert_tokens_to_ids(token))  # type: ignore[arg-type]  # an id of one token
            if token not in self.prompt and not _begins_prompts(slot_id, tokenizer):
                config = replace(self, slot_token=token, slot_id=slot_id)
                return super(CoLLMConfig, config).with_answer_ids(tokenizer)
        raise ValueError(
            "prompt: the slots need an unknown, end-of-text or padding token of the tokenizer that stands nowhere else "
            "in a prompt, and it has none"
        )


def _begins_prompts(token_id: int, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer puts this token in front of every text."""
    alone, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    return whole[: len(alone)] != alone and whole[0] == token_id
