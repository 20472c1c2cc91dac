"""CoRAConfig: every knob of the method, checked, to and from JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cora.prompts import DEFAULT_TEXT, PromptTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATORS = ("mlp", "qformer")
TOKENS = ("joint", "pair")


@dataclass
class CoRAConfig:
    """y = x·Wᵀ + (alpha / r) · (dropout(x) · A(u, i)) · P for the linears `target_modules` of the layers `layers`.

    base_model         name or path of the language model; filled in by CoRAModel where the model knows its own
    r, alpha           rank; the scaling is alpha / r, alpha None means 2r
    dropout            of x in the low-rank path, in training
    target_modules     names, or ends of names, of the adapted linears; layers: their layers, None for all
    generator          what makes A of the embeddings of user and item: "mlp" (small) or "qformer" (as published)
    generator_dropout  inside the generator, in training
    user_dropout       share of samples whose user is taken for unknown in training: for vectors that have memorised
                       the rows they were trained on
    tokens             qformer: the pair is one key/value token ("joint", as published) or two ("pair")
    num_queries, num_blocks, num_heads, ffn_size, width
                       qformer: queries, blocks, heads, FFN width, model width (None: twice the embeddings')
    hidden_size        mlp: width of the hidden layer
    answer             what follows the prompt, leading space included, if the user likes the item, and if not. The
                       score is the difference of the two logits; with None for the second the logit of the first
                       alone, the published score. The difference starts near zero whatever the logits' offset.
    answer_ids         the token ids of `answer`, from `with_answer_ids`
    prompt, no_history, max_history, max_length
                       the template (see PromptTemplate), titles of the history at most, tokens of the prompt at most

    Raises TypeError or ValueError that names the field.
    """

    base_model: str | None = None
    r: int = 16
    alpha: float | None = None
    dropout: float = 0.05
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    layers: tuple[int, ...] | None = None
    generator: str = "mlp"
    generator_dropout: float = 0.1
    user_dropout: float = 0.0
    tokens: str = "joint"
    num_queries: int = 4
    num_blocks: int = 8
    num_heads: int = 8
    ffn_size: int = 3072
    width: int | None = None
    hidden_size: int = 256
    answer: tuple[str, str | None] = (" Yes", " No")
    answer_ids: tuple[int, ...] | None = None
    prompt: str = DEFAULT_TEXT
    no_history: str = "none so far"
    max_history: int = 10
    max_length: int = 512

    def __post_init__(self) -> None:
        for name in ("r", "num_queries", "num_blocks", "num_heads", "ffn_size", "hidden_size", "max_length"):
            _check_int(name, getattr(self, name), at_least=1)
        _check_int("max_history", self.max_history, at_least=0)
        if self.width is not None:
            _check_int("width", self.width, at_least=1)
        if self.alpha is not None and not (_is_number(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha: expected a positive number or None, got {self.alpha!r}")
        for name in ("dropout", "generator_dropout", "user_dropout"):
            if not (_is_number(getattr(self, name)) and 0 <= getattr(self, name) < 1):
                raise ValueError(
                    f"{name}: expected a number from 0 up to, not including, 1, got {getattr(self, name)!r}"
                )
        for name, choices in (("generator", GENERATORS), ("tokens", TOKENS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.base_model is not None and not isinstance(self.base_model, str):
            raise TypeError(f"base_model: expected a name or None, got {self.base_model!r}")
        self.target_modules = _as_tuple("target_modules", self.target_modules, str)
        if self.layers is not None:
            self.layers = _as_tuple("layers", self.layers, int)
        self._check_answer()
        if not isinstance(self.prompt, str) or not isinstance(self.no_history, str):
            raise TypeError(f"prompt, no_history: expected text, got {self.prompt!r}, {self.no_history!r}")
        PromptTemplate(self.prompt, self.no_history)

    @property
    def scaling(self) -> float:
        return (2 * self.r if self.alpha is None else self.alpha) / self.r

    @property
    def template(self) -> PromptTemplate:
        return PromptTemplate(self.prompt, self.no_history)

    def with_answer_ids(self, tokenizer: "PreTrainedTokenizerBase") -> "CoRAConfig":
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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CoRAConfig":
        """Raises ValueError for a name that is no field."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"unknown configuration fields: {', '.join(unknown)}; known are {', '.join(sorted(known))}"
            )
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> "CoRAConfig":
        """Reads what `to_json_string` wrote. Raises ValueError for a file that holds no JSON object."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not JSON ({error})") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
        return cls.from_dict(values)

    def _check_answer(self) -> None:
        texts = list(self.answer) if isinstance(self.answer, list | tuple) else []
        if len(texts) != 2 or not isinstance(texts[0], str) or not isinstance(texts[1], str | None) or "" in texts:
            raise ValueError(
                f"answer: expected the text for yes and the text for no, or None for it, got {self.answer!r}"
            )
        self.answer = (texts[0], texts[1])
        if self.answer_ids is not None:
            ids = self.answer_ids = _as_tuple("answer_ids", self.answer_ids, int)
            wanted = 1 if texts[1] is None else 2
            if len(set(ids)) != len(ids) or len(ids) != wanted:
                raise ValueError(f"answer_ids: expected {wanted} different token ids for {self.answer}, got {ids}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_int(name: str, value: object, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{name}: expected a whole number from {at_least}, got {value!r}")


def _as_tuple(name: str, values: Any, kind: type) -> tuple[Any, ...]:
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_list or not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
        raise TypeError(f"{name}: expected a list of {kind.__name__}, got {values!r}")
    if not values:
        raise ValueError(f"{name}: empty")
    if kind is int and min(values) < 0:
        raise ValueError(f"{name}: expected numbers from 0, got {values!r}")
    return tuple(values)
