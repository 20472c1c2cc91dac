"""LCRecConfig: the knobs of the method, checked, to and from JSON."""

from dataclasses import dataclass
from typing import ClassVar

from cora.checks import as_tuple, check_choice, check_int
from cora.codes.search import NORMALISE
from cora.generators.options import GENERATORS
from cora.methods.config import AdapterConfig

TASKS = ("seqrec", "item2index", "index2item", "fusion")
TARGETS = ("dense", "response")


@dataclass
class LCRecConfig(AdapterConfig):
    """The fields of AdapterConfig, with A and B shared by all samples, and

    index              folder that `cora index` wrote; none: one is made with its defaults in the folder of the run
    tasks              what is trained: "seqrec", the next item of a history, always; "item2index" and "index2item",
                       codes of titles and titles of codes; "fusion", titles from histories of codes and the other way
                       round. As published but for the two that need reviews
    targets            "dense": every code of a sequence is a target, as attention is causal; "response": the next item
                       of one beginning of each history alone, as published
    max_history        items of a history, the newest
    beam               nodes that go on after each level when items are ranked, and items that are
    normalise          "children": the probability of a code, in training and ranking alike, is among those that items
                       have behind the same beginning, by which the items' sum to 1; "level": among all of that level,
                       as published: which codes items have is then for the language model to learn
    generator          what makes a further LoRA for each user from their collaborative vectors, as in CoRA: the name of
                       a generator, with its own defaults; none for the shared LoRA alone, as published
    user_rank          rank of that LoRA

    Raises TypeError or ValueError that names the field.
    """

    method: ClassVar[str] = "lcrec"

    target_modules: tuple[str, ...] | str = "all-linear"
    index: str | None = None
    tasks: tuple[str, ...] = TASKS
    targets: str = "dense"
    max_history: int = 50
    beam: int = 20
    normalise: str = "children"
    generator: str | None = None
    user_rank: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.index, str | None):
            raise TypeError(f"index: expected a folder or none, got {self.index!r}")
        self.tasks = as_tuple("tasks", self.tasks, str)
        for task in self.tasks:
            check_choice("tasks", task, TASKS)
        if "seqrec" not in self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks: expected seqrec and others, each once, got {', '.join(self.tasks)}")
        check_choice("targets", self.targets, TARGETS)
        check_choice("normalise", self.normalise, NORMALISE)
        for name in ("max_history", "beam", "user_rank"):
            check_int(name, getattr(self, name), at_least=1)
        if self.generator is not None:
            check_choice("generator", self.generator, tuple(GENERATORS))
