"""TALLRecConfig: the knobs of the baseline, as published where that is said."""

from dataclasses import dataclass
from typing import ClassVar

from cora.methods.config import MethodConfig


@dataclass
class TALLRecConfig(MethodConfig):
    """y = x·Wᵀ + (alpha / r) · (dropout(x) · A) · B: the fields of MethodConfig, with A and B shared by all samples.

    r 8, alpha 16 and dropout 0.05 on q and v are those published.
    """

    method: ClassVar[str] = "tallrec"

    r: int = 8
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
