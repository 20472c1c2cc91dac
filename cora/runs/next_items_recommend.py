"""Items recommended by a finished run of a method that says which item comes next: of all, without candidates."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cora.methods import load_method
from cora.runs.folder import RunFolder
from cora.runs.next_items import PastVectors, prepare_next_items


class NextItemRecommender:
    """A finished run, how many items it gives, and how wide the beam is that ranks them; with the face of Recommender.

    A user's history are all their rows in the run's data, test rows included, and none of its items is given. The
    history of a user without rows is empty: they get what is most probable of anybody.

    Raises FileNotFoundError unless a finished run is there, ValueError for top < 1 and candidates < top.
    """

    def __init__(self, run: str | Path, top: int, candidates: int) -> None:
        self.folder = RunFolder.existing(run)
        if top < 1 or candidates < top:
            raise ValueError(f"top, candidates: expected 1 <= top <= candidates, got {top} and {candidates}")
        self.top, self.candidates = top, candidates
        self.prepared = prepare_next_items(self.folder.config(), self.folder)
        self.frame, self.titles = self.prepared.data.frame, self.prepared.data.titles
        self._row = {user: row for row, user in enumerate(self.prepared.sequences.user_ids)}

    @cached_property
    def model(self) -> Any:
        """Loaded when the first user is ranked for: what is wrong with a request is found before."""
        method = load_method(self.prepared.config.method)
        return method.Model.from_pretrained(self.folder.model)

    @cached_property
    def _encoder(self) -> Any:
        tasks = load_method(self.prepared.config.method).tasks
        return tasks.TaskEncoder(self.prepared.tokenizer, self.model.tokens.item_tokens, self.prepared.item_titles)

    def of(self, users: Sequence[Any]) -> tuple[list[list[str]], pd.DataFrame]:
        """The titles of each user's history, oldest first; and user_id, rank (from 1), item_id, title and probability
        of what is recommended to them, in their order. A user with a row with every item gets none."""
        sequences, settings = self.prepared.sequences, self.prepared.method_config
        rows = [self._row.get(user) for user in users]
        pasts = [
            np.zeros(0, dtype=np.int64) if row is None else sequences.item[slice(*sequences.starts[row : row + 2])]
            for row in rows
        ]
        seen = torch.zeros(len(users), len(sequences.item_ids), dtype=torch.bool)
        for place, past in enumerate(pasts):
            seen[place, torch.from_numpy(past)] = True
        prompts = [self._encoder.sequence(past[-settings.max_history :].tolist()) for past in pasts]
        vectors = None
        if self.model.embeddings is not None:
            befores = [max(0, len(past) - settings.max_history) for past in pasts]
            vectors = PastVectors(self.model.embeddings, sequences).of(list(zip(rows, befores, strict=True)))
        ranked = self.model.rank(prompts, vectors, seen, self.candidates)
        found = [
            (user, rank, sequences.item_ids[item], score)
            for user, items, scores in zip(users, ranked.items.tolist(), ranked.scores.tolist(), strict=True)
            for rank, (item, score) in enumerate(zip(items[: self.top], scores, strict=False), 1)
            if item >= 0
        ]
        columns = list(zip(*found, strict=True)) if found else [(), (), (), ()]
        ids = {name: self.frame[name].dtype for name in ("user_id", "item_id")}
        table = pd.DataFrame(
            {
                "user_id": pd.Series(columns[0], dtype=ids["user_id"]),
                "rank": pd.Series(columns[1], dtype=np.int64),
                "item_id": pd.Series(columns[2], dtype=ids["item_id"]),
                "title": pd.Series([self.titles[item] for item in columns[2]], dtype=object),
                "probability": np.exp(np.array(columns[3], dtype=np.float64)),
            }
        )
        titles = [
            [self.titles[sequences.item_ids[item]] for item in past[-settings.max_history :].tolist()] for past in pasts
        ]
        return titles, table
