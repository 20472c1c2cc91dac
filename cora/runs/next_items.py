"""What the runs of methods share that say which item comes next: sequences, codes, prompts, what is known of users."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cora.codes import ItemCodes, Recipe
from cora.codes.search import Ranked
from cora.collaborative import CollaborativeEmbeddings, user_encoder
from cora.data import load_interactions
from cora.llm.loading import load_tokenizer, positions
from cora.methods import load_method
from cora.runs.folder import RunFolder
from cora.runs.index import index_items, split_of
from cora.runs.prepare import PreparedData
from cora.runs.settings import RunConfig
from cora.sequences import Sequences

_TOGETHER = 1024
_INDEX = "index"  # of the codes that a run makes for itself, in its folder


@dataclass(frozen=True)
class NextItems(PreparedData):
    """The data of a run as sequences, with the tokenizer of its language model and its method's configuration."""

    tokenizer: PreTrainedTokenizerBase
    method_config: Any
    known_codes: ItemCodes | None  # None: the run has to make them first

    @property
    def codes(self) -> ItemCodes:
        assert self.known_codes is not None
        return self.known_codes

    def with_codes(self, run: RunFolder) -> "NextItems":
        """The same with codes: those there are, or made now, in the folder of the run."""
        if self.known_codes is not None:
            return self
        made = index_items(PreparedData(self.config, self.data), "both", Recipe(), run.path / _INDEX)
        return replace(self, known_codes=made)

    @cached_property
    def sequences(self) -> Sequences:
        """Over the catalogue that has codes, in their order."""
        return Sequences.of(self.splits, self.codes.item_ids)

    @property
    def item_titles(self) -> list[str]:
        return [self.data.titles.get(item, "") for item in self.codes.item_ids]

    def targets(self, part: str, rows: int) -> np.ndarray:
        """int64 [n]: so many events of a part with one before them, drawn at random by the seed, 0 for all."""
        events = self.sequences.targets(part)
        if rows == 0 or rows >= len(events):
            return events
        return np.sort(np.random.default_rng(self.config.seed).choice(events, rows, replace=False))

    def ranked(
        self,
        model: Any,
        encoder: Any,
        events: np.ndarray,
        width: int,
        vectors: "PastVectors | None",
        kept: Sequence[bool] = (False,),
    ) -> list[Ranked]:
        """What the model ranks first at each event, by what its user did before; kept: of each ranking that is made,
        whether items that they have had by then can be given again."""
        newest, sequences = self.method_config.max_history, self.sequences

        def of(events: np.ndarray) -> list[Ranked]:
            prompts = [encoder.sequence(sequences.history(event, newest).tolist()) for event in events]
            out = torch.from_numpy(sequences.seen(events))
            of_users = None
            if vectors is not None:
                places = events - sequences.starts[sequences.user[events]]
                befores = np.maximum(0, places - newest).tolist()
                of_users = vectors.of(list(zip(sequences.user[events].tolist(), befores, strict=True)))
            ranked: list[Ranked] = model.rank_all(prompts, of_users, [None if one else out for one in kept], width)
            return ranked

        found = [of(part) for part in in_parts(events)]
        return [Ranked(*map(torch.cat, zip(*one, strict=True))) for one in zip(*found, strict=True)]


def in_parts(events: np.ndarray) -> list[np.ndarray]:
    """The events, some at a time: what is as wide as the catalogue for each of them is made for so many at once."""
    return np.array_split(events, max(1, -(-len(events) // _TOGETHER)))


class PastVectors:
    """e_u of users as of so many events of theirs: what a user's LoRA is generated from.

    Of the events before those that a prompt or a training sequence holds, and of no later one: no vector has seen a
    target, and what it tells of is what the prompt leaves out. A user of no such event has the vector of an empty past.
    """

    def __init__(self, embeddings: CollaborativeEmbeddings, sequences: Sequences) -> None:
        self._encoder = user_encoder(embeddings)
        self._sequences = sequences

    def of(self, pasts: Sequence[tuple[int | None, int]]) -> Tensor:
        """[n, d] fp32, of (user, how many of their first events)."""
        s, items, labels = self._sequences, [], []
        for user, before in pasts:
            start = 0 if user is None else int(s.starts[user])
            past = slice(start, start + before)
            items.append([s.item_ids[item] for item in s.item[past].tolist()])
            labels.append(s.label[past].tolist())
        return self._encoder.vectors(items, labels).float()


def prepare_next_items(config: RunConfig, run: RunFolder) -> NextItems:
    """Reads the data, the tokenizer and the codes of a run: those beside its trained model, those that its settings
    name, or those that it made, the first that there are.

    Raises what reading them raises, and ValueError for items of the data that have no code, for codes that have seen
    more than the run's training rows and for histories that the language model has no positions for: all that cannot be
    is refused before anything is made.
    """
    data = load_interactions(config.data, config.positive_rating)
    settings: Any = config.method_config()
    tokenizer = load_tokenizer(config.model)
    folders = [run.model] if (run.model / ItemCodes.FILES[0]).is_file() else []
    folders += [Path(settings.index)] if settings.index else []
    folders += [run.path / _INDEX] if (run.path / _INDEX).is_dir() else []
    codes = ItemCodes.load(folders[0]) if folders else None
    if codes is not None:
        codes.rows(data.frame["item_id"].unique())
        if codes.about.get("split", now := split_of(config)) != now:
            raise ValueError(
                f"index: the codes are made of the training rows of the split {codes.about['split']!r:.60}, the run's "
                f"is {now!r}: they may have seen rows that it asks about; make them with the same split"
            )
    _check_length(config, settings.max_history, tokenizer, Recipe().levels if codes is None else codes.levels)
    return NextItems(config, data, tokenizer, settings, codes)


def _check_length(config: RunConfig, history: int, tokenizer: PreTrainedTokenizerBase, levels: int) -> None:
    bare = load_method(config.method).tasks.TaskEncoder(tokenizer, torch.zeros(1, levels), ["any"]).sequence([])
    longest, most = len(bare) + levels * (history + 1), positions(config.model)
    if most is not None and longest > most:
        raise ValueError(
            f"max_history: {history} items are up to {longest} tokens, the language model has {most} positions"
        )
