"""MethodConfig: what every method is told of the language model, the prompt and the answer, to and from JSON."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cora.checks import as_tuple, check_flag, check_int, check_share, is_number
from cora.generators.generator import Generator
from cora.prompts.template import DEFAULT_TEXT, PromptTemplate
from cora.tensors import read_json

if TYPE_CHECKING:
    from typing import Self

    from transformers import PreTrainedTokenizerBase

# Of the folder of a saved model. 1 had P beside the generator and said neither its method nor its format.
FORMAT = 2


@dataclass
class StoredConfig:
    """What every configuration of a method can do: to and from JSON."""

    method: ClassVar[str]

    @property
    def splits_prompts(self) -> bool:
        """Whether the beginning of a prompt, up to the title asked about, has deltas of the user alone."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """Every field by name."""
        return asdict(self)

    def to_json_string(self) -> str:
        """The fields, the method's name and the number of the format, as a saved model has them in config.json."""
        return json.dumps({"format": FORMAT, "method": self.method, **self.to_dict()}, indent=2) + "\n"

    @classmethod
    def field_names(cls) -> list[str]:
        """Every name that the constructor takes."""
        return [field.name for field in fields(cls)]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Self":
        """Raises ValueError for a name that is no field."""
        known = cls.field_names()
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(
                f"unknown configuration fields: {', '.join(unknown)}; known are {', '.join(sorted(known))}"
            )
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> "Self":
        """Reads what `to_json_string` wrote.

        Raises ValueError for a file that holds no JSON object, or that of another format or another method.
        """
        values = read_json(Path(path))
        if (found := values.pop("format", 1)) != FORMAT:
            raise ValueError(f"{path}: a model of format {found}, expected format {FORMAT}; train it with this version")
        if (method := values.pop("method", None)) != cls.method:
            raise ValueError(f"{path}: a model of the method {method!r}, expected {cls.method!r}")
        return cls.from_dict(values)


@dataclass
class AdapterConfig(StoredConfig):
    """y = x·Wᵀ + (alpha / r) · (dropout(x) · A) · B for the linears `target_modules` of the layers `layers`.

    base_model         name or path of the language model; filled in by the model where that knows its own name
    r, alpha           rank; the scaling is alpha / r, alpha None means 2r
    dropout            of x in the low-rank path, in training
    target_modules     names, or ends of names, of the adapted linears, or "all-linear", all but the output layer;
                       layers: their layers, None for all

    Raises TypeError or ValueError that names the field.
    """

    base_model: str | None = None
    r: int = 16
    alpha: float | None = None
    dropout: float = 0.05
    target_modules: tuple[str, ...] | str = ("q_proj", "k_proj", "v_proj", "o_proj")
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_int("r", self.r, at_least=1)
        if self.alpha is not None and not (is_number(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha: expected a positive number or None, got {self.alpha!r}")
        check_share("dropout", self.dropout)
        if self.base_model is not None and not isinstance(self.base_model, str):
            raise TypeError(f"base_model: expected a name or None, got {self.base_model!r}")
        if self.target_modules != "all-linear":
            self.target_modules = as_tuple("target_modules", self.target_modules, str)
        if self.layers is not None:
            self.layers = as_tuple("layers", self.layers, int)

    @property
    def scaling(self) -> float:
        return (2 * self.r if self.alpha is None else self.alpha) / self.r

    @property
    def family_size(self) -> int:
        """How many training rows share the beginning of their prompts at most, where prompts are split."""
        return 1


@dataclass
class MethodConfig(AdapterConfig):
    """The fields of AdapterConfig, and of methods that read an answer

    answer             what follows the prompt, leading space included, if the user likes the item, and if not. The
                       score is the difference of the two logits; with None for the second the logit of the first
                       alone, the published score. The difference starts near zero whatever the logits' offset.
    answer_ids         the token ids of `answer`, from `with_answer_ids`
    prompt, no_history, max_history, max_length
                       the template (see PromptTemplate), titles of the history at most, tokens of the prompt at most

    Raises TypeError or ValueError that names the field.
    """

    answer: tuple[str, str | None] = (" Yes", " No")
    answer_ids: tuple[int, ...] | None = None
    prompt: str = DEFAULT_TEXT
    no_history: str = "none so far"
    max_history: int = 10
    max_length: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("max_length", self.max_length, at_least=1)
        check_int("max_history", self.max_history, at_least=0)
        self._check_answer()
        if not isinstance(self.prompt, str) or not isinstance(self.no_history, str):
            raise TypeError(f"prompt, no_history: expected text, got {self.prompt!r}, {self.no_history!r}")
        PromptTemplate(self.prompt, self.no_history)

    @property
    def template(self) -> PromptTemplate:
        return PromptTemplate(self.prompt, self.no_history)

    def with_answer_ids(self, tokenizer: "PreTrainedTokenizerBase") -> "Self":
        """A copy with the token ids that `answer` has where it follows the prompt.

        Raises ValueError for an answer that is not exactly one token there.
        """
        prompt = self.template.render([], "")
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = []
        for text in self.answer:
            if text is None:
                continue
            after = tokenizer(prompt + text, add_special_tokens=False)["input_ids"]
            if after[:-1] != before:
                new = tokenizer.convert_ids_to_tokens(after[len(before) :])
                raise ValueError(f"answer: {text!r} after the prompt must be one token, got {new}")
            ids.append(after[-1])
        return replace(self, answer_ids=tuple(ids))

    def _check_answer(self) -> None:
        texts = list(self.answer) if isinstance(self.answer, list | tuple) else []
        if len(texts) != 2 or not isinstance(texts[0], str) or not isinstance(texts[1], str | None) or "" in texts:
            raise ValueError(
                f"answer: expected the text for yes and the text for no, or None for it, got {self.answer!r}"
            )
        self.answer = (texts[0], texts[1])
        if self.answer_ids is not None:
            ids = self.answer_ids = as_tuple("answer_ids", self.answer_ids, int)
            wanted = 1 if texts[1] is None else 2
            if len(set(ids)) != len(ids) or len(ids) != wanted:
                raise ValueError(f"answer_ids: expected {wanted} different token ids for {self.answer}, got {ids}")


@dataclass
class PairConfig(MethodConfig):
    """The fields of MethodConfig, and of methods that read collaborative vectors

    offset         whether the collaborative logit <e_u, e_i> is part of the score, so that the language model learns
                   what it leaves over. For vectors whose inner product is the logit of a like, as those trained here
    user_dropout   share of samples whose user is taken for unknown in training: for vectors that have memorised the
                   rows they were trained on
    item_dropout   share of samples whose item is: the text has to say then what the vector does not, as of items that
                   nobody has rated yet

    Raises TypeError or ValueError that names the field.
    """

    offset: bool = False
    user_dropout: float = 0.0
    item_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("offset", self.offset)
        check_share("user_dropout", self.user_dropout)
        check_share("item_dropout", self.item_dropout)


class GeneratedConfig(PairConfig):
    """A PairConfig that says which generator makes the deltas."""

    @property
    def generator_class(self) -> type[Generator]:
        raise NotImplementedError

    @property
    def options(self) -> Any:
        """The generator's own Options."""
        raise NotImplementedError
