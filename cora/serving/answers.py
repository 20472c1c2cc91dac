"""Questions about users and items, and their answers by a finished run: many at once, in one batch."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cora.data.problems import clipped
from cora.runs.prepare import Prepared
from cora.runs.recommend import Asked, Recommender, as_id, probability


class UnknownItem(LookupError):
    """An item that the run's data have no title of."""


@dataclass(frozen=True)
class Question:
    """Scores of `items` for a user, or where these are None the best `top` of `candidates` unseen items.

    user, items: ids as the run's data have them. adapted: by the method, or by its language model alone.
    """

    user: Any
    items: tuple[Any, ...] | None = None
    top: int = 10
    candidates: int = 100
    adapted: bool = True

    @property
    def prompts(self) -> int:
        """Prompts that the answer takes, at most."""
        return self.candidates if self.items is None else len(self.items)


@dataclass(frozen=True)
class Answer:
    """known: whether the run knows the user; of others the vector is the mean. history: titles the user liked, oldest
    first, empty for questions about items. table: item_id, title and probability; score of items asked about, in their
    order; collaborative_rank of recommended ones, the best first."""

    known: bool
    history: list[str]
    table: pd.DataFrame


class Answerer:
    """A finished run that answers questions. It is not meant for several threads at once.

    Raises FileNotFoundError unless a finished run is there, and what reading its data and its model raises.
    """

    def __init__(self, run: str | Path) -> None:
        self._recommender = Recommender(run, 1, 1)
        self._recommender.model  # noqa: B018  loaded now: what is wrong with it is said before anything is served
        frame, vectors = self._recommender.frame, self._recommender.embeddings
        self._known = {*frame["user_id"].unique().tolist(), *vectors.user_ids}
        self._stranger = _unused_id(self._known)

    @property
    def run(self) -> Path:
        return self._recommender.folder.path

    @property
    def method(self) -> str:
        return self._recommender.prepared.config.method

    @property
    def has_language_model(self) -> bool:
        """Whether the run has one that can be asked alone."""
        return isinstance(self._recommender.prepared, Prepared)

    def user_id(self, given: int | str) -> Any:
        """The id as the data have it. Raises ValueError for one that they cannot have."""
        return as_id("user", str(given), self._recommender.frame["user_id"])

    def item_ids(self, given: Sequence[int | str]) -> tuple[Any, ...]:
        """The ids as the data have them. Raises ValueError for one that they cannot have, UnknownItem for one without
        a title."""
        ids = tuple(as_id("items", str(one), self._recommender.frame["item_id"]) for one in given)
        if unknown := [one for one in ids if one not in self._recommender.titles]:
            raise UnknownItem(f"items: the run knows no item {clipped(repr(unknown[0]), 80)}")
        return ids

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer for each question; what all of them ask is scored together."""
        with warnings.catch_warnings():
            # Of shortened prompts and items without a vector: of no use to anybody here, and without an end.
            warnings.simplefilter("ignore")
            return self._answers(questions)

    def _answers(self, questions: Sequence[Question]) -> list[Answer]:
        users = [one.user if one.user in self._known else self._stranger for one in questions]
        wanted = [row for row, one in enumerate(questions) if one.items is None]
        pairs = [(row, item) for row, one in enumerate(questions) for item in one.items or ()]
        parts, vectors, histories = [], [], {}
        if wanted:
            found, asked = self._recommender.candidates_of(
                [users[row] for row in wanted], [questions[row].candidates for row in wanted]
            )
            histories = dict(zip(wanted, self._recommender.titles_of(found), strict=True))
            parts.append(asked.rows.assign(of=np.array(wanted)[asked.rows["of"]]))
            vectors.append(asked.vectors)
        if pairs:
            asked = self._recommender.pairs_of([users[row] for row, _ in pairs], [item for _, item in pairs])
            parts.append(asked.rows.assign(of=[row for row, _ in pairs], collaborative_rank=0))
            vectors.append(asked.vectors)
        rows = self._scored(questions, pd.concat(parts, ignore_index=True), _joined(vectors))
        tables = self._tables(questions, rows)
        return [
            Answer(one.user in self._known, histories.get(row, []), tables[row]) for row, one in enumerate(questions)
        ]

    def _scored(self, questions: Sequence[Question], rows: pd.DataFrame, vectors: Tensor | None) -> pd.DataFrame:
        """All rows with their score, in at most two batches: with the deltas and without."""
        adapted = np.array([one.adapted for one in questions])[rows["of"].to_numpy()]
        scores = np.zeros(len(rows), dtype=np.float32)
        for by_method in (True, False):
            some = np.flatnonzero(adapted == by_method)
            asked = Asked(rows.iloc[some], None if vectors is None else vectors[torch.from_numpy(some)])
            scores[some] = self._recommender.scores(asked, by_method)
        return rows.assign(score=scores)

    def _tables(self, questions: Sequence[Question], rows: pd.DataFrame) -> list[pd.DataFrame]:
        """The table of each question."""
        is_pair = np.array([one.items is not None for one in questions])[rows["of"].to_numpy()]
        pairs, wanted = rows[is_pair], rows[~is_pair]
        titles = [self._recommender.titles[item] for item in pairs["item_id"].tolist()]
        scored = pairs[["item_id", "score"]].assign(title=titles, probability=probability(pairs["score"].to_numpy()))
        ranked = self._recommender.ranked(wanted)
        of = {True: pairs["of"].to_numpy(), False: np.sort(wanted["of"].to_numpy())}
        tables = []
        for row, one in enumerate(questions):
            asks_pairs = one.items is not None
            start, stop = np.searchsorted(of[asks_pairs], [row, row + 1])
            tables.append(scored[start:stop] if asks_pairs else ranked[start : min(stop, start + one.top)])
        return tables


def _joined(vectors: Sequence[Tensor | None]) -> Tensor | None:
    """The vectors of all rows, None where users have those of the table."""
    given = [one for one in vectors if one is not None]
    return torch.cat(given) if given else None


def _unused_id(ids: set[Any]) -> Any:
    """An id that stands for all users whom nobody knows: told apart, each of them would be kept in mind as unknown."""
    if isinstance(next(iter(ids)), str):
        return max(ids, key=len) + "?"
    return next(one for one in count() if one not in ids)
