"""Items recommended to users by a finished run."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cora.collaborative import Directions, user_encoder
from cora.data import liked_before
from cora.methods import load_method
from cora.runs.folder import RunFolder
from cora.runs.next_items_recommend import NextItemRecommender
from cora.runs.prepare import Prepared, prepare_scored
from cora.runs.score import load_model, score_prompts
from cora.runs.similarity import directions_of


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


class Asked(NamedTuple):
    """Rows with user_id, item_id, label and timestamp, and e_u [rows, d] of each row's user, None for the table's."""

    rows: pd.DataFrame
    vectors: Tensor | None


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
        config = self.folder.config()
        self.prepared = prepare_scored(config)
        self._max_history = config.method_config().max_history
        self.frame, self.titles = self.prepared.data.frame, self.prepared.data.titles
        self.embeddings = self.folder.vectors()
        self._items = np.sort(self.frame["item_id"].unique())
        self._users = set(self.frame["user_id"].unique().tolist())

    @cached_property
    def model(self) -> Any:
        """Loaded when the first prompt is scored: what is wrong with a request is found before."""
        return load_model(self.folder, self.prepared.config)

    @cached_property
    def _directions(self) -> Directions | None:
        return directions_of(self.folder, self.embeddings)

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
        histories, asked = self.candidates_of(users, [self.candidates] * len(users))
        table = self.ranked(asked.rows.assign(score=self.scores(asked)))
        return self.titles_of(histories), table[table["rank"] <= self.top].reset_index(drop=True)

    def candidates_of(self, users: Sequence[Any], most: Sequence[int]) -> tuple[list[list], Asked]:
        """The items each of the users liked, oldest first; and as rows, with `of`, the place of the user in `users`,
        and `collaborative_rank`, the `most` items without a row of the user's that the collaborative vectors put first.
        """
        unseen = [self._unseen(user) for user in users]
        # Of all candidates of a user one and the same past, the whole: that of the first is that of all.
        now = self._now(users, [(items if len(items) else self._items)[0] for items in unseen])
        histories = self._histories(now)
        vectors = self.prepared.user_vectors(self.embeddings, now)
        firsts, chosen = [], []
        for row, (user, items) in enumerate(zip(users, unseen, strict=True)):
            vector = None if vectors is None else self._of_items(vectors[row], now.iloc[[row] * len(items)], items)
            alone = self.embeddings.score([user] * len(items), items.tolist(), vector).numpy()
            best = np.argsort(-alone, kind="stable")[: most[row]]
            firsts.append(items[best])
            chosen += [] if vector is None else [vector[torch.from_numpy(best)]]
        of = [row for row, items in enumerate(firsts) for _ in items]
        rows = self._now([users[row] for row in of], np.concatenate(firsts).tolist()).assign(
            of=of,
            collaborative_rank=np.concatenate([1 + np.arange(len(one)) for one in firsts]),
        )
        return histories, Asked(rows, None if vectors is None else torch.cat(chosen))

    def pairs_of(self, users: Sequence[Any], items: Sequence[Any]) -> Asked:
        """Rows of any users and items, which have titles, as of the end of the run's data."""
        rows = self._now(users, items)
        return Asked(rows, self.prepared.user_vectors(self.embeddings, rows))

    def scores(self, asked: Asked, adapted: bool = True) -> np.ndarray:
        """The score of every row, float32 [rows], by the method or, not `adapted`, by its language model alone.
        Raises ValueError for a method that has none."""
        if asked.rows.empty:
            return np.zeros(0, dtype=np.float32)
        if not isinstance(self.prepared, Prepared):
            if not adapted:
                raise ValueError(f"delta: a run of {self.prepared.config.method} has no language model to be alone")
            return np.asarray(self.model.score_rows(asked.rows, self.prepared.splits))
        rows = self.prepared.with_histories(asked.rows, self._directions)
        return score_prompts(self.model, self.prepared.prompts(rows, asked.vectors), adapted)

    def ranked(self, rows: pd.DataFrame) -> pd.DataFrame:
        """user_id, rank, item_id, title, probability and collaborative_rank of candidates with a score: rows of one
        `of` together, in its order, the best first."""
        rows = rows.iloc[np.lexsort((rows["collaborative_rank"], -rows["score"], rows["of"]))]
        return pd.DataFrame(
            {
                "user_id": rows["user_id"],
                "rank": 1 + rows.groupby("of").cumcount(),
                "item_id": rows["item_id"],
                # Of a type without rows too: tables of some users and of others become one.
                "title": pd.Series([self.titles[item] for item in rows["item_id"]], index=rows.index, dtype=str),
                "probability": probability(rows["score"].to_numpy()),
                "collaborative_rank": rows["collaborative_rank"],
            }
        )

    def titles_of(self, histories: Sequence[Sequence[Any]]) -> list[list[str]]:
        return [[self.titles[item] for item in history] for history in histories]

    def _now(self, users: Sequence[Any], items: Sequence[Any]) -> pd.DataFrame:
        """Rows of users and items after all others."""
        ids = {"user_id": users, "item_id": items}
        typed = {name: pd.Series(list(one), dtype=self.frame[name].dtype) for name, one in ids.items()}
        return pd.DataFrame(typed).assign(timestamp=np.iinfo(np.int64).max, label=0)

    def _histories(self, rows: pd.DataFrame) -> list[list]:
        known = self.prepared.splits.of_users(rows["user_id"])
        return liked_before(rows, known, self._max_history)

    def _unseen(self, user: Any) -> np.ndarray:
        seen = self.frame["item_id"].to_numpy()[self.frame["user_id"].to_numpy() == user]
        return self._items[~np.isin(self._items, seen)]

    def _of_items(self, vector: Tensor, rows: pd.DataFrame, items: np.ndarray) -> Tensor:
        """The vector of a user for each of the items, all of them the same unless the encoder reads the item."""
        if not self._reads_item or not len(items):
            return vector.expand(len(items), -1)
        made = self.prepared.user_vectors(self.embeddings, rows.assign(item_id=items))
        assert made is not None  # as the vector is
        return made


def probability(scores: np.ndarray) -> np.ndarray:
    """The logistic function of scores, float64."""
    return 0.5 + 0.5 * np.tanh(0.5 * scores.astype(np.float64))


def as_id(name: str, text: str, column: pd.Series) -> Any:
    """The id that a text is in a column. Raises ValueError, of the argument `name`, for one that it cannot hold."""
    if not pd.api.types.is_integer_dtype(column.dtype):
        return text
    # int() would read 1_0 as ten. No more digits than int64 has: of thousands int() itself is refused.
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text.strip()) or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"{name}: expected a whole number, as the data's ids are, got {text!r:.80}")
    return int(text)
