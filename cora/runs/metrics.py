"""How good scores are: AUC, UAUC and log-loss, over all rows and over the warm, the cold and others, as a table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import log_loss

from cora.methods import METHODS
from cora.runs.intervals import UserAUCs, lead_text, leads

# What identifies a scored row; every other column of predictions holds the scores of a method.
KEY = ("user_id", "item_id", "label", "timestamp", "warm", "cold_item")
BASELINES = {"collaborative": "collaborative", "fold_in": "same, fold-in", "titles": "same, titles", "llm": "LLM alone"}
_COLUMNS = ("auc", "uauc", "warm_auc", "warm_uauc", "cold_auc", "cold_uauc", "log_loss")
_OF_COLD_ITEMS = ("cold_items_auc", "cold_items_uauc")


def identified(rows: pd.DataFrame) -> pd.DataFrame:
    """The columns of KEY that there are."""
    return rows[[name for name in KEY if name in rows]]


def label_of(name: str) -> str:
    """What tables and pictures call whatever made scores of that name."""
    return BASELINES.get(name) or (METHODS[name].label if name in METHODS else name)


def metrics(rows: pd.DataFrame, scores: np.ndarray) -> dict[str, float | None]:
    """AUC over all rows; UAUC, the mean AUC of the users who have both labels; both for warm and cold rows, and for
    those of cold items; log-loss.

    rows: user_id, label (0 or 1) and, for warm and cold, warm (bool: user and item are both in train); cold_item (bool:
    the item is not), for those of cold items. scores: one finite logit a row. What cannot be computed, for rows of one
    label, is None.

    Raises ValueError for no rows, another number of scores and scores that are not finite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not len(rows) or scores.shape != (len(rows),):
        raise ValueError(f"scores: expected one for each of {len(rows)} rows, and at least one, got {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"scores: {int((~np.isfinite(scores)).sum())} of {len(scores)} are not finite")
    labels, users = rows["label"].to_numpy(), rows["user_id"].to_numpy()
    warm = rows["warm"].to_numpy() if "warm" in rows else np.ones(len(rows), dtype=bool)
    found: dict[str, float | None] = {}
    parts = {"": np.ones_like(warm), "warm_": warm, "cold_": ~warm}
    if "cold_item" in rows:
        parts["cold_items_"] = rows["cold_item"].to_numpy()
    for name, part in parts.items():
        found[name + "auc"], found[name + "uauc"] = _aucs(users[part], labels[part], scores[part])
    found["log_loss"] = float(log_loss(labels, 0.5 + 0.5 * np.tanh(0.5 * scores), labels=[0, 1]))
    return found


def summary(rows: pd.DataFrame) -> dict[str, Any]:
    """metrics.json of predictions: rows with the columns of KEY and a column of scores for each method.

    leads: by how much the first that is no baseline is better than each of the others, as `intervals.leads` has it.
    """
    methods = {name: metrics(rows, rows[name].to_numpy()) for name in rows if name not in KEY}
    counts = {"rows": len(rows), "positives": int(rows["label"].sum()), "users": int(rows["user_id"].nunique())}
    counts |= {"warm_rows": int(rows["warm"].sum())}
    if "cold_item" in rows:
        counts |= {"cold_item_rows": int(rows["cold_item"].sum())}
    found: dict[str, Any] = counts | {"methods": methods}
    reference = next((name for name in methods if name not in BASELINES), None)
    if reference is not None and len(methods) > 1:
        scored = {name: [identified(rows).assign(score=rows[name])] for name in methods}
        over = {name: leads(scored[reference], scored[name]) for name in methods if name != reference}
        found |= {"leads": {"of": reference, "over": over}}
    return found


def as_table(found: dict[str, Any]) -> str:
    """The methods of a `summary`, one a line, and below how many rows there are, and how many were drawn to train
    each on where that is known (training_rows: name → rows), and how well the vectors rank the rows that the method was
    trained on (vectors_on_training_rows: name → AUC)."""
    has_cold_items = "cold_item_rows" in found
    widths = {name: max(12, len(name) + 2) for name in (*_COLUMNS, *(_OF_COLD_ITEMS if has_cold_items else ()))}
    lines = ["{:<14}".format("") + "".join(f"{name.replace('_', ' '):>{width}}" for name, width in widths.items())]
    for method, values in found["methods"].items():
        cells = {name: f"{value:.4f}" if (value := values[name]) is not None else "-" for name in widths}
        lines.append(f"{label_of(method):<14}" + "".join(f"{cells[name]:>{width}}" for name, width in widths.items()))
    lines.append(
        f"{found['rows']} rows of {found['users']} users, {found['positives']} positive, {found['warm_rows']} warm"
        + (f", {found['cold_item_rows']} of cold items" if has_cold_items else "")
    )
    if trained := found.get("training_rows"):
        counts = [f"{count} of {label_of(name)}" for name, count in trained.items()]
        lines.append(f"training rows drawn: {', '.join(counts)}")
    if levels := found.get("vectors_on_training_rows"):
        aucs = [f"{auc:.4f} by {label_of(name)}" for name, auc in levels.items() if auc is not None]
        lines.append(f"auc on the method's training rows: {', '.join(aucs) or '-'}")
    return "\n".join([*lines, *_lines_of_leads(found["leads"])] if "leads" in found else lines)


def _lines_of_leads(found: dict[str, Any]) -> list[str]:
    """What `leads` holds of a `summary`, over one of the others a line."""
    names = next(iter(found["over"].values()))
    head = "".join(f"{name.replace('_', ' '):>26}  " for name in names)
    lines = ["", f"{label_of(found['of'])} is better by (95 %, over draws of users)", f"{'than':<14}{head}"]
    for name, lead in found["over"].items():
        lines.append(f"{label_of(name):<14}" + "".join(f"{lead_text(values)}  " for values in lead.values()))
    return [line.rstrip() for line in lines]


def _aucs(users: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> list[float | None]:
    """AUC and UAUC, None where no two labels are there to compare."""
    of_users = UserAUCs(users, labels, scores)
    once = np.ones(len(of_users.users))
    return [None if np.isnan(one) else one for one in (of_users.auc(once), of_users.uauc(once))]


def joined(predictions: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The scores of several runs of the same rows side by side; of a method that several have, the first's.

    Raises ValueError for runs that scored other rows.
    """
    first, *others = predictions
    for other in others:
        if not identified(first).equals(identified(other)):
            raise ValueError("run: the runs scored different rows; give them the same data, split, seed and test_rows")
        first = first.assign(**{name: other[name] for name in other if name not in first})
    return first
