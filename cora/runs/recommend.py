"""Items recommended to users by a finished run."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cora.collaborative import user_encoder
from cora.data import liked_before
from cora.methods import load_method
from cora.methods.model import MethodModel
from cora.runs.folder import RunFolder
from cora.runs.next_items_recommend import NextItemRecommender
from cora.runs.prepare import prepare
from cora.runs.score import load_model, score_prompts


@dataclass(frozen=True)
class Recommendations:
    """history: titles the user liked, oldest first. table: item_id, title, probability and, where the collaborative
    vectors chose the candidates, collaborative_rank, the best first."""

    history: list[str]
    table: pd.DataFrame


def recommend(run: str | Path, user: str, top: int = 10, candidates: int = 100) -> Recommendations:
    """The `top` items of highest score among the `candidates` that the collaborative vectors rank first for the user.

    Only items that the user has no row with in the run's data. The prompt holds the user's newest liked titles. A user
    whom the vectors do not know has the mean vector and is reported. user: the id as text.

    Raises FileNotFoundError unless a finished run is there; ValueError for an id that cannot be one of the data's, for
    top < 1, candidates < top, and a user with no item left.
    """
    recommender = recommender_of(run, top, candidates)
    chosen = as_id("user", user, recommender.frame["user_id"])
    histories, table = recommender.of([chosen])
    if table.empty:
        raise ValueError(f"user: {chosen!r} has a row with every item, none is left to recommend")
    return Recommendations(histories[0], table.drop(columns=["user_id", "rank"]))


def recommender_of(run: str | Path, top: int, candidates: int) -> "Recommender | NextItemRecommender":
    """What recommends by the method of a finished run. Raises as `recommend` does."""
    folder = RunFolder.existing(run)
    of_task = NextItemRecommender if load_method(folder.config().method).task == "next item" else Recommender
    return of_task(run, top, candidates)


class Recommender:
    """A finished run, and how many items it ranks and gives. Raises as `recommend` does."""

    def __init__(self, run: str | Path, top: int, candidates: int) -> None:
        self.folder = RunFolder.existing(run)
        if top < 1 or candidates < top:
            raise ValueError(f"top, candidates: expected 1 <= top <= candidates, got {top} and {candidates}")
        self.top, self.candidates = top, candidates
        self.prepared = prepare(self.folder.config())
        self.frame, self.titles = self.prepared.data.frame, self.prepared.data.titles
        self.embeddings = self.folder.vectors()
        self._items = np.sort(self.frame["item_id"].unique())
        self._users = set(self.frame["user_id"].unique().tolist())

    @cached_property
    def model(self) -> MethodModel:
        """Loaded when the first prompt is scored: what is wrong with a request is found before."""
        return load_model(self.folder, self.prepared.config)

    @cached_property
    def _reads_item(self) -> bool:
        return user_encoder(self.embeddings).reads_item

    def of(self, users: Sequence[Any]) -> tuple[list[list[str]], pd.DataFrame]:
        """The titles each of the users liked, oldest first; and user_id, rank (from 1), item_id, title, probability and
        collaborative_rank of what is recommended to them, in their order. A user with a row with every item gets none.
        """
        strangers = [user for user in users if user not in self._users]
        if strangers:
            self.embeddings.lookup_users(strangers)  # which reports them
        unseen = {user: self._unseen(user) for user in users}
        # Of all candidates of a user one and the same past, the whole: that of the first is that of all.
        now = pd.DataFrame(
            {
                "user_id": pd.Series(list(users), dtype=self.frame["user_id"].dtype),
                "item_id": [(items if len(items) else self._items)[0] for items in unseen.values()],
                "timestamp": np.iinfo(np.int64).max,
            }
        )
        known = self.prepared.splits.of_users(now["user_id"])
        histories = liked_before(now, known, self.prepared.method_config.max_history)
        rows = self._ranked(now, unseen)
        titles = [[self.titles[item] for item in history] for history in histories]
        return titles, self._best(rows)

    def _unseen(self, user: Any) -> np.ndarray:
        seen = self.frame["item_id"].to_numpy()[self.frame["user_id"].to_numpy() == user]
        return self._items[~np.isin(self._items, seen)]

    def _ranked(self, now: pd.DataFrame, unseen: dict[Any, np.ndarray]) -> pd.DataFrame:
        """The candidates of every user, those the collaborative vectors put first, with the score of the method."""
        vectors = self.prepared.user_vectors(self.embeddings, now)
        parts, chosen = [], []
        for row, (user, items) in enumerate(unseen.items()):
            vector = None if vectors is None else self._of_items(vectors[row], now.iloc[[row] * len(items)], items)
            alone = self.embeddings.score([user] * len(items), items.tolist(), vector).numpy()
            best = np.argsort(-alone, kind="stable")[: self.candidates]
            part = now.iloc[[row] * len(best)].assign(item_id=items[best], collaborative_rank=1 + np.arange(len(best)))
            parts.append(part.assign(label=0, of=row))
            chosen += [] if vector is None else [vector[torch.from_numpy(best)]]
        rows = pd.concat(parts, ignore_index=True)
        if rows.empty:
            return rows.assign(score=0.0)
        rows = self.prepared.with_histories(rows, self.embeddings)
        of_rows = None if vectors is None else torch.cat(chosen)
        return rows.assign(score=score_prompts(self.model, self.prepared.prompts(rows, of_rows)))

    def _of_items(self, vector: Tensor, rows: pd.DataFrame, items: np.ndarray) -> Tensor:
        """The vector of a user for each of the items, all of them the same unless the encoder reads the item."""
        if not self._reads_item or not len(items):
            return vector.expand(len(items), -1)
        made = self.prepared.user_vectors(self.embeddings, rows.assign(item_id=items))
        assert made is not None  # as the vector is
        return made

    def _best(self, rows: pd.DataFrame) -> pd.DataFrame:
        order = np.lexsort((rows["collaborative_rank"], -rows["score"], rows["of"]))
        rows = rows.iloc[order]
        rows = rows.assign(rank=1 + rows.groupby("of").cumcount())
        rows = rows[rows["rank"] <= self.top].reset_index(drop=True)
        return pd.DataFrame(
            {
                "user_id": rows["user_id"],
                "rank": rows["rank"],
                "item_id": rows["item_id"],
                "title": [self.titles[item] for item in rows["item_id"].tolist()],
                "probability": 0.5 + 0.5 * np.tanh(0.5 * rows["score"].to_numpy()),
                "collaborative_rank": rows["collaborative_rank"],
            }
        )


def as_id(name: str, text: str, column: pd.Series) -> Any:
    """The id that a text is in a column. Raises ValueError, of the argument `name`, for one that it cannot hold."""
    if not pd.api.types.is_integer_dtype(column.dtype):
        return text
    # int() would read 1_0 as ten. No more digits than int64 has: of thousands int() itself is refused.
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text.strip()) or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"{name}: expected a whole number, as the data's ids are, got {text!r:.80}")
    return int(text)
