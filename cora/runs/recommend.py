"""Items recommended to a user by a finished run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cora.data import liked_before
from cora.runs.folder import RunFolder
from cora.runs.prepare import prepare
from cora.runs.score import load_model, score_prompts


@dataclass(frozen=True)
class Recommendations:
    """history: titles the user liked, oldest first. table: item_id, title, probability, collaborative_rank, the best
    first."""

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
    prepared = prepare(config)
    frame, titles = prepared.data.frame, prepared.data.titles
    chosen = as_id("user", user, frame["user_id"])
    embeddings = folder.vectors()
    model = load_model(folder, config)
    rows = _unseen(frame, chosen)
    if not (frame["user_id"] == chosen).any():
        embeddings.lookup_users([chosen])  # which reports it
    # Of all rows one and the same past, the whole: the vector and the history of the first are those of all.
    now = rows[:1].assign(timestamp=np.iinfo(np.int64).max)
    vectors = prepared.user_vectors(embeddings, now)
    vectors = None if vectors is None else vectors.expand(len(rows), -1)
    alone = embeddings.score(rows["user_id"].tolist(), rows["item_id"].tolist(), vectors).numpy()
    best = np.argsort(-alone, kind="stable")[:candidates]
    rows, vectors = rows.iloc[best], None if vectors is None else vectors[: len(best)]
    (history,) = liked_before(now, frame, prepared.method_config.max_history)
    scores = score_prompts(model, prepared.prompts(rows.assign(label=0, history=[history] * len(rows)), vectors))
    best = np.argsort(-scores, kind="stable")[:top]
    table = pd.DataFrame(
        {
            "item_id": rows["item_id"].to_numpy()[best],
            "title": [titles[item] for item in rows["item_id"].to_numpy()[best].tolist()],
            "probability": 0.5 + 0.5 * np.tanh(0.5 * scores[best]),
            "collaborative_rank": best + 1,
        }
    )
    return Recommendations([titles[item] for item in history], table)


def _unseen(frame: pd.DataFrame, user: Any) -> pd.DataFrame:
    """user_id and item_id of the items that the user has no row with."""
    seen = set(frame.loc[frame["user_id"] == user, "item_id"].tolist())
    items = [item for item in sorted(set(frame["item_id"].tolist())) if item not in seen]
    if not items:
        raise ValueError(f"user: {user!r} has a row with every item, none is left to recommend")
    return pd.DataFrame({"user_id": [user] * len(items), "item_id": items})


def as_id(name: str, text: str, column: pd.Series) -> Any:
    """The id that a text is in a column. Raises ValueError, of the argument `name`, for one that it cannot hold."""
    if not pd.api.types.is_integer_dtype(column.dtype):
        return text
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}: expected a whole number, as the data's ids are, got {text!r}") from None
