"""LLMCFConfig: the knobs of LLM-CF, as published where that is said."""

from dataclasses import dataclass
from typing import ClassVar

from cora.checks import as_tuple, check_choice, check_int, check_share, is_number
from cora.methods.config import StoredConfig
from cora.methods.llmcf.backbones import BACKBONES

FEATURES = ("ict", "knn", "none")
COTS = ("llm", "template", "shuffled", "none")


@dataclass
class LLMCFConfig(StoredConfig):
    """A model of click-through with one more feature, made of similar earlier rows and of what was written of them.

    backbone       deepfm, xdeepfm, dcnv2, autoint or din
    thoughts       folder that `cora thoughts` wrote: the texts of the examples and the vectors of the items; None only
                   with feature none, and then no field of the items' text either
    feature        ict, the feature of LLM-CF; knn, the label of the same examples weighted by similarity, a control;
                   none, the backbone alone
    cot            of ict, the texts: llm; template, told by counts; shuffled, those of the language model dealt to
                   other examples; none, examples and labels alone
    k              examples of a row, half of them of each label. 4 published
    width, hidden, dropout
                   of embeddings and feature (32 published), of the backbone's layers (200, 80 and 0.1 published)
    max_history    ratings before a row that it reads, the newest (20 published)
    user_dropout, item_dropout
                   shares of training rows whose user, or item, is taken for unknown
    text_weight    of L_cot in the loss. 1 published
    learning_rate, weight_decay, batch_size, epochs, patience
                   Adam's; it stops after `patience` epochs without a better valid AUC. Published: about 0.01, 1e-4,
                   128, 30, 2
    teacher        parquet file of another model's scores, logits of training rows, to be distilled; with
                   teacher_column which (cora, llm, ...), teacher_weight its share of the loss and teacher_temperature

    Raises TypeError or ValueError that names the field.
    """

    method: ClassVar[str] = "llmcf"

    backbone: str = "din"
    thoughts: str | None = None
    feature: str = "ict"
    cot: str = "llm"
    k: int = 4
    width: int = 16
    hidden: tuple[int, ...] = (200, 80)
    dropout: float = 0.3
    max_history: int = 50
    user_dropout: float = 0.8
    item_dropout: float = 0.05
    text_weight: float = 1.0
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    batch_size: int = 512
    epochs: int = 30
    patience: int = 2
    teacher: str | None = None
    teacher_column: str = "cora"
    teacher_weight: float = 0.5
    teacher_temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in (("backbone", tuple(BACKBONES)), ("feature", FEATURES), ("cot", COTS)):
            check_choice(name, getattr(self, name), choices)
        for name in ("thoughts", "teacher"):
            if not isinstance(getattr(self, name), str | None):
                raise TypeError(f"{name}: expected a path or None, got {getattr(self, name)!r:.80}")
        if self.thoughts is None and self.feature != "none":
            raise ValueError(f"thoughts: feature {self.feature} needs a folder that `cora thoughts` wrote, got None")
        check_int("k", self.k, at_least=2)
        for name in ("width", "k"):
            if getattr(self, name) % 2:
                raise ValueError(f"{name}: expected an even number, got {getattr(self, name)}")
        for name in ("max_history", "batch_size", "epochs", "patience"):
            check_int(name, getattr(self, name), at_least=1)
        check_int("width", self.width, at_least=4)
        self.hidden = as_tuple("hidden", self.hidden, int)
        if min(self.hidden) < 1:
            raise ValueError(f"hidden: expected widths from 1, got {self.hidden}")
        for name in ("dropout", "user_dropout", "item_dropout"):
            check_share(name, getattr(self, name))
        for name in ("text_weight", "learning_rate", "weight_decay", "teacher_weight", "teacher_temperature"):
            value, positive = getattr(self, name), name in ("learning_rate", "teacher_temperature")
            if not is_number(value) or value < 0 or (positive and value == 0):
                raise ValueError(f"{name}: expected a {'positive ' if positive else ''}number from 0, got {value!r}")
        if self.teacher_weight > 1:
            raise ValueError(f"teacher_weight: expected a share from 0 to 1, got {self.teacher_weight}")
        if not isinstance(self.teacher_column, str):
            raise TypeError(f"teacher_column: expected a name, got {self.teacher_column!r:.80}")
