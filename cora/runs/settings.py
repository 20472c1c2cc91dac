"""The settings of `cora train`."""

from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from cora.checks import check_choice, check_int, check_share, is_number
from cora.collaborative import COLLABORATIVE, CollaborativeEmbeddings
from cora.data import NAMED_DATA, RECIPES
from cora.methods import METHODS, load_method


def _option(default: Any, text: str) -> Any:
    """A field with the help that the command line shows."""
    return field(default=default, metadata={"help": text})


@dataclass
class RunConfig:
    """Everything that decides what `cora train` does. `cora` and `trainer` hold fields of the method's configuration
    (CoRAConfig) and of transformers' TrainingArguments by name, and override what follows from the other settings.

    Raises TypeError or ValueError that names the field.
    """

    data: str = _option("", f"named data set ({', '.join(NAMED_DATA)}), RecBole, MovieLens or Amazon folder, .parquet, "
                            ".csv, .tsv or .jsonl file, a folder of its parts, or one with train, valid and maybe "
                            "test")  # fmt: skip
    model: str = _option("", "named model (smollm2-135m), or what transformers' from_pretrained takes; none for llmcf")
    method: str = _option("cora", f"way to recommend: {', '.join(METHODS)}")
    positive_rating: float = _option(4.0, "ratings from here on are label 1, where the data has no labels")
    split: str = _option("ratio", "how rows are split in time: ratio (8:1:1), dates, leave-last (of each user), a "
                                  f"published split ({', '.join(RECIPES)}), or cold-items: as ratio, with a cold-share "
                                  "of 0.2")  # fmt: skip
    valid_from: str | None = _option(None, "split dates: first day of the validation rows, such as 2002-04-01")
    test_from: str | None = _option(None, "split dates: first day of the test rows")
    leave_last: int = _option(1, "split leave-last: test rows of each user, and validation rows before them")
    cold_share: float | None = _option(None, "share of train's items that lose their training rows, drawn at random: "
                                             "half of them stay in the validation rows, half in the test rows; works "
                                             "with any split (default: 0, but 0.2 with split cold-items)")  # fmt: skip
    embeddings: str | None = _option(None, "safetensors file of collaborative embeddings; none: they are trained")
    users: str | None = _option(None, "vectors of users: fold-in, from what they rated before the row in question, for "
                                      "vectors whose inner product is the logit of a like; or table, their row of the "
                                      "embeddings (default: fold-in, but table with --embeddings that do not come from "
                                      "cora fit)")  # fmt: skip
    history: str = _option("recent", "titles of a prompt, of what the user liked before: recent, the newest; or "
                                     "similar, those whose vectors are most similar to that of the item asked "
                                     "about")  # fmt: skip
    similarity: str = _option("collaborative", "history similar: which vectors are compared, the collaborative, "
                                               "those of titles by the language model (text), or both")  # fmt: skip
    new_items: str = _option("mean", "what a method is told of items without a training row, and of those it is to "
                                     "take for such: mean, the mean vector, or titles, what the titles, as the "
                                     "language model reads them, say of vectors")  # fmt: skip
    llm_share: float = _option(1.0, "share of the training rows that the language model may be trained on, drawn at "
                                    "random, of those that vectors-share leaves; the vectors are trained on all of "
                                    "theirs")  # fmt: skip
    vectors_share: float = _option(1.0, "share of the training rows, the earliest, that the vectors are trained on, "
                                        "the newest tenth of it to stop by; the language model is trained on the later "
                                        "rest, so that no vector has seen a label that it learns; at 1 both have all "
                                        "training rows, and the vectors stop by the validation rows")  # fmt: skip
    collaborative: str = _option("svd-logistic", f"model that makes the vectors: {', '.join(COLLABORATIVE)}")
    dim: int = _option(10, "width of the vectors")
    dtype: str = _option("auto", "of the language model: float32, bfloat16, float16, or auto, which is bfloat16 where "
                                 "the device computes it fast")  # fmt: skip
    steps: int = _option(400, "optimiser steps at most")
    batch_size: int = _option(16, "prompts in a step, per device")
    learning_rate: float = _option(5e-4, "peak of the learning rate, after warm-up; it falls to 8 % along a cosine")
    warmup_steps: int = _option(10, "steps in which the learning rate rises")
    weight_decay: float = _option(1e-3, "of matrices; biases and norms have none")
    eval_every: int = _option(50, "steps between validations, each of which saves a checkpoint")
    patience: int = _option(20, "validations without a better AUC after which training stops")
    max_minutes: float | None = _option(None, "training stops after this time and its best checkpoint is used")
    valid_rows: int = _option(500, "validation rows used, drawn at random; 0 for all")
    test_rows: int = _option(2000, "test rows used, drawn at random, the same for every method; 0 for all")
    seed: int = _option(0, "of all random choices")
    cora: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A name that is no method is refused with the other choices.
        needs_model = self.method not in METHODS or not METHODS[self.method].trained_by
        for name in ("data", "model") if needs_model else ("data",):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"{name}: expected a name or a path, got {getattr(self, name)!r}")
        for name in ("valid_from", "test_from"):
            if isinstance(value := getattr(self, name), date):  # what YAML makes of a date without quotes
                setattr(self, name, value.isoformat())
            elif not isinstance(value, str | None):
                raise TypeError(f"{name}: expected a date such as 2002-04-01, got {value!r:.80}")
        for name, least in _LEAST.items():
            check_int(name, getattr(self, name), least)
        for name in ("positive_rating", "learning_rate", "weight_decay", "max_minutes"):
            value = getattr(self, name)
            if value is None and name == "max_minutes":
                continue
            if not is_number(value):
                raise TypeError(f"{name}: expected a number, got {value!r}")
            if value < 0 or (value == 0 and name in ("learning_rate", "max_minutes")):
                raise ValueError(f"{name}: expected a positive number, got {value!r}")
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        check_share("cold_share", self.share_of_cold_items)
        if self.split == "cold-items" and self.share_of_cold_items == 0:
            raise ValueError("cold_share: expected more than 0 with split cold-items, got 0")
        for name in ("cora", "trainer"):
            if not isinstance(getattr(self, name), dict):
                raise TypeError(f"{name}: expected names with values, got {getattr(self, name)!r}")
        for name in ("llm_share", "vectors_share"):
            value = getattr(self, name)
            if not (is_number(value) and 0 < value <= 1):
                raise ValueError(f"{name}: expected a number above 0 and up to 1, got {value!r}")
        if self.vectors_share < 1 and METHODS[self.method].task != "rating":
            raise ValueError(f"vectors_share: {self.method} is trained on whole sequences, not on later rows alone")
        if self.history == "recent" and self.similarity != "collaborative":
            raise ValueError(f"similarity: {self.similarity} needs history similar, got history recent")
        if self.method_config().splits_prompts and self.history == "similar":
            raise ValueError("history: similar are other titles for every item, and cannot be with shared_prefix=true")

    def sampled(self, frame: pd.DataFrame, rows: int) -> pd.DataFrame:
        """`rows` rows drawn at random, in their order; all of them for 0 or where there are no more."""
        return frame if rows == 0 or rows >= len(frame) else frame.sample(rows, random_state=self.seed).sort_index()

    def method_config(self) -> Any:
        """The method's configuration, a MethodConfig where it reads prompts. Raises ValueError for a name in `cora`
        that it does not have."""
        method = load_method(self.method)
        base = {} if method.trained_by else {"base_model": self.model}
        return method.Config.from_dict({**self.cora, **base})

    @property
    def share_of_cold_items(self) -> float:
        """The share of train's items that lose their training rows."""
        if self.cold_share is None:
            return 0.2 if self.split == "cold-items" else 0.0
        return self.cold_share

    def encodes_users(self, embeddings: CollaborativeEmbeddings) -> bool:
        """Whether users have the vectors of their past rather than their rows of the table."""
        if self.users is None:
            return self.embeddings is None or embeddings.user_encoder is not None
        return self.users == "fold-in"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunConfig":
        """Raises ValueError for a name that is no field."""
        known = [one.name for one in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"unknown settings: {', '.join(unknown)}; known are {', '.join(known)}")
        return cls(**values)


_CHOICES: dict[str, tuple[str | None, ...]] = {
    "method": tuple(METHODS), "split": ("ratio", "dates", "leave-last", "cold-items", *RECIPES),
    "collaborative": tuple(COLLABORATIVE), "dtype": ("auto", "float32", "bfloat16", "float16"),
    "users": (None, "fold-in", "table"), "history": ("recent", "similar"),
    "similarity": ("collaborative", "text", "both"), "new_items": ("mean", "titles"),
}  # fmt: skip
_LEAST = {
    "leave_last": 1, "dim": 3, "steps": 1, "batch_size": 1, "warmup_steps": 0, "eval_every": 1, "patience": 1,
    "valid_rows": 0, "test_rows": 0, "seed": 0,
}  # fmt: skip


def value_of(name: str, text: str) -> Any:
    """The number, truth value, null, or list, mapping or string between its brackets or quotes, that a text is in YAML;
    any other text is itself: a prompt with a colon or a # is no mapping and no comment.

    Raises ValueError, of the field `name`, for a list that does not end or has no such values.
    """
    begun = text.strip()[:1]
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        if begun == "[":
            raise ValueError(f"{name}: expected a value as YAML writes it, got {text!r:.80}") from None
        return text
    return value if begun in tuple("{[\"'") or isinstance(value, bool | int | float | None) else text


def load_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML or JSON file. Raises FileNotFoundError, and ValueError for a file that holds none."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"config: there is no file {path}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"config: {path} is neither YAML nor JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"config: expected names with values in {path}, got {type(values).__name__}")
    return values
