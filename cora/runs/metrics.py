"""How good scores are: AUC, UAUC and log-loss, over all rows and over the warm and the cold ones, as a table."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from cora.collaborative import CollaborativeEmbeddings
from cora.prompts import PromptCollator, PromptDataset

if TYPE_CHECKING:
    from cora.methods.cora.model import CoRAModel

METHODS = {"mf": "collaborative", "fold_in": "same, fold-in", "llm": "LLM alone", "cora": "CoRA"}
_COLUMNS = ("auc", "uauc", "warm_auc", "warm_uauc", "cold_auc", "cold_uauc", "log_loss")


def score_prompts(
    model: "CoRAModel", prompts: PromptDataset, collate: PromptCollator, adapted: bool = True
) -> np.ndarray:
    """The score of every prompt, float32 [rows], by CoRA or, not `adapted`, by its language model alone."""
    batch = collate([prompts[row] for row in range(len(prompts))])
    ids, mask = (batch[name].to(model.base.device) for name in ("input_ids", "attention_mask"))
    scores = model.score(
        ids, mask, batch["user_ids"], batch["item_ids"], adapted=adapted, user_vectors=batch.get("user_vectors")
    )
    return np.asarray(scores.cpu())


def collaborative_scores(
    embeddings: CollaborativeEmbeddings, rows: pd.DataFrame, user_vectors: Tensor | None
) -> pd.DataFrame:
    """rows with a column mf, <e_u, e_i> of the tables, and fold_in, of user_vectors [rows, d], where they are given."""
    pairs = rows["user_id"].tolist(), rows["item_id"].tolist()
    scored = rows.assign(mf=embeddings.score(*pairs).float().numpy())
    if user_vectors is not None:
        scored["fold_in"] = embeddings.score(*pairs, user_vectors).float().numpy()
    return scored


def metrics(rows: pd.DataFrame, scores: np.ndarray) -> dict[str, float | None]:
    """AUC over all rows; UAUC, the mean AUC of the users who have both labels; both for warm and cold rows; log-loss.

    rows: user_id, label (0 or 1) and, for warm and cold, warm (bool: user and item are both in train); scores: one
    finite logit a row. What cannot be computed, for rows of one label, is None.

    Raises ValueError for no rows, another number of scores and scores that are not finite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not len(rows) or scores.shape != (len(rows),):
        raise ValueError(f"scores: expected one for each of {len(rows)} rows, and at least one, got {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"scores: {int((~np.isfinite(scores)).sum())} of {len(scores)} are not finite")
    labels, users = rows["label"].to_numpy(), rows["user_id"].to_numpy()
    warm = rows["warm"].to_numpy() if "warm" in rows else np.ones(len(rows), dtype=bool)
    found = {}
    for name, part in (("", np.ones_like(warm)), ("warm_", warm), ("cold_", ~warm)):
        found[name + "auc"] = _auc(labels[part], scores[part])
        found[name + "uauc"] = _uauc(users[part], labels[part], scores[part])
    found["log_loss"] = float(log_loss(labels, 0.5 + 0.5 * np.tanh(0.5 * scores), labels=[0, 1]))
    return found


def summary(rows: pd.DataFrame) -> dict[str, Any]:
    """metrics.json of predictions: rows with user_id, label, warm and a column of scores for each method."""
    methods = {name: metrics(rows, rows[name].to_numpy()) for name in METHODS if name in rows}
    counts = {"rows": len(rows), "positives": int(rows["label"].sum()), "users": int(rows["user_id"].nunique())}
    return counts | {"warm_rows": int(rows["warm"].sum()), "methods": methods}


def as_table(found: dict[str, Any]) -> str:
    """The methods of a `summary`, one a line."""
    lines = ["{:<14}".format("") + "".join(f"{name.replace('_', ' '):>12}" for name in _COLUMNS)]
    for method, values in found["methods"].items():
        cells = (f"{value:.4f}" if (value := values[name]) is not None else "-" for name in _COLUMNS)
        lines.append(f"{METHODS[method]:<14}" + "".join(f"{cell:>12}" for cell in cells))
    lines.append(
        f"{found['rows']} rows of {found['users']} users, {found['positives']} positive, {found['warm_rows']} warm"
    )
    return "\n".join(lines)


def _auc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    return float(roc_auc_score(labels, scores)) if 0 < labels.sum() < len(labels) else None


def _uauc(users: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> float | None:
    codes = pd.factorize(users)[0]
    order = np.argsort(codes, kind="stable")
    borders = np.flatnonzero(np.diff(codes[order])) + 1
    aucs = [_auc(labels[rows], scores[rows]) for rows in np.split(order, borders)]
    known = [auc for auc in aucs if auc is not None]
    return float(np.mean(known)) if known else None
