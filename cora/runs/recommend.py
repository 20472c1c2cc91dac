"""A finished run put to use: labelled rows evaluated, items recommended to a user."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cora.data import liked_before
from cora.llm.loading import chosen_dtype, load_tokenizer
from cora.methods.cora.model import CoRAModel
from cora.prompts import PromptCollator, PromptDataset
from cora.runs.folder import RunFolder
from cora.runs.metrics import collaborative_scores, score_prompts, summary
from cora.runs.settings import RunConfig


def evaluate(run: str | Path, data: str | None = None, part: str = "test", rows: int = 0) -> dict[str, Any]:
    """The metrics, as in metrics.json, of a finished run on a part ("train", "valid", "test") of its own data or of
    other data with the same ids. rows: that many drawn at random, 0 for all.

    Raises FileNotFoundError unless a finished run is there, ValueError for a part that the data does not have.
    """
    folder = RunFolder.existing(run)
    config = folder.config() if data is None else replace(folder.config(), data=data)
    if rows < 0:
        raise ValueError(f"rows: expected a whole number from 0, got {rows}")
    interactions = config.interactions()
    parts = config.splits(interactions).parts()
    if part not in parts:
        raise ValueError(f"part: {interactions.name} has {', '.join(parts)}, got {part!r}")
    found = config.sampled(parts[part], rows).reset_index(drop=True)
    model, score = _scorer(folder, config, interactions.titles)
    vectors = config.user_vectors(model.embeddings, found, interactions.frame)
    found = collaborative_scores(model.embeddings, found, vectors)
    for method, adapted in (("llm", False), ("cora", True)):
        found[method] = score(found, vectors, adapted)
    return {"part": part} | summary(found)


@dataclass(frozen=True)
class Recommendations:
    """history: titles the user liked, oldest first. table: item_id, title, probability, mf_rank, best first."""

    history: list[str]
    table: pd.DataFrame


def recommend(run: str | Path, user: str, top: int = 10, candidates: int = 100) -> Recommendations:
    """The `top` items of highest score among the `candidates` that the collaborative vectors rank first for the user.

    Only items that the user has no row with in the run's data. The prompt holds the user's newest liked titles. A user
    whom the vectors do not know has the mean vector and is reported. user: the id as text.

    Raises FileNotFoundError unless a finished run is there; ValueError for an id that cannot be one of the data's, for
    top < 1, candidates < top, and a user with no item left.
    """
    folder = RunFolder.existing(run)
    if top < 1 or candidates < top:
        raise ValueError(f"top, candidates: expected 1 <= top <= candidates, got {top} and {candidates}")
    config = folder.config()
    interactions = config.interactions()
    frame = interactions.frame
    chosen = _as_id(user, frame["user_id"])
    model, score = _scorer(folder, config, interactions.titles)
    rows = _unseen(frame, chosen)
    if not (frame["user_id"] == chosen).any():
        model.embeddings.lookup_users([chosen])  # which reports it
    # Of all rows one and the same past, the whole: the vector and the history of the first are those of all.
    now = rows[:1].assign(timestamp=np.iinfo(np.int64).max)
    vectors = config.user_vectors(model.embeddings, now, frame)
    vectors = None if vectors is None else vectors.expand(len(rows), -1)
    alone = model.embeddings.score(rows["user_id"].tolist(), rows["item_id"].tolist(), vectors).numpy()
    best = np.argsort(-alone, kind="stable")[:candidates]
    rows, vectors = rows.iloc[best], None if vectors is None else vectors[: len(best)]
    (history,) = liked_before(now, frame, model.config.max_history)
    scores = score(rows.assign(label=0, history=[history] * len(rows)), vectors, True)
    best = np.argsort(-scores, kind="stable")[:top]
    table = pd.DataFrame(
        {
            "item_id": rows["item_id"].to_numpy()[best],
            "title": [interactions.titles[item] for item in rows["item_id"].to_numpy()[best].tolist()],
            "probability": 0.5 + 0.5 * np.tanh(0.5 * scores[best]),
            "mf_rank": best + 1,
        }
    )
    return Recommendations([interactions.titles[item] for item in history], table)


def _scorer(folder: RunFolder, config: RunConfig, titles: dict[Any, str]) -> tuple[CoRAModel, Any]:
    """The saved model, and a function from rows with histories and the vectors of their users, if the table's are not
    to be used, adapted or not, to their scores."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = CoRAModel.from_pretrained(folder.model, dtype=chosen_dtype(config.dtype, device)).to(device)
    tokenizer = load_tokenizer(config.model)
    collate = PromptCollator(tokenizer)

    def score(rows: pd.DataFrame, vectors: Tensor | None, adapted: bool) -> np.ndarray:
        prompts = PromptDataset(rows, titles, tokenizer, model.config.template, model.config.max_length, vectors)
        return score_prompts(model, prompts, collate, adapted)

    return model, score


def _unseen(frame: pd.DataFrame, user: Any) -> pd.DataFrame:
    """user_id and item_id of the items that the user has no row with."""
    seen = set(frame.loc[frame["user_id"] == user, "item_id"].tolist())
    items = [item for item in sorted(set(frame["item_id"].tolist())) if item not in seen]
    if not items:
        raise ValueError(f"user: {user!r} has a row with every item, none is left to recommend")
    return pd.DataFrame({"user_id": [user] * len(items), "item_id": items})


def _as_id(text: str, column: pd.Series) -> Any:
    if not pd.api.types.is_integer_dtype(column.dtype):
        return text
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"user: expected a whole number, as the data's ids are, got {text!r}") from None
