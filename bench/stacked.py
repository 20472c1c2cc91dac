"""What is left to add to the vectors: boosted trees over everything else that the rows of a data set say.

    python -m bench.stacked DATA [DIM]

Trained on the training rows, whose items are without the row's own rating, and judged on the validation rows, beside
the vectors' own score: AUC, UAUC, and the difference in AUC with its 95 % interval over users. A language model that
reads titles and a history cannot be expected to add much where these cannot.
"""

import re
import sys

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier

from cora.collaborative import COLLABORATIVE, CollaborativeEmbeddings
from cora.data import pasts
from cora.runs.intervals import UserAUCs, differences
from cora.runs.prepare import PreparedData, prepare_data
from cora.runs.settings import RunConfig

_SHRINKAGE = 4.0  # ratings of the mean that a mean of few is taken with
_STEEPNESS = 6.0  # of the weights e^(6 · cosine) with which ratings of like items count
_COLUMNS = {
    "the vectors' score alone": ["score"],
    "+ its parts and how much is known": ["of_item", "of_user", "item_ratings", "user_ratings"],
    "+ the user's mean, last five and last rating": ["user_mean", "last_five", "last"],
    "+ ratings of items like it, weighted": ["alike", "how_alike", "like_the_last"],
    "+ the year of the title, and of titles liked and disliked": ["year", "after_liked", "after_disliked"],
}


def main() -> None:
    data, dim = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10
    prepared = prepare_data(RunConfig(data=data, model="smollm2-135m", dim=dim))
    splits = prepared.splits
    vectors, _ = COLLABORATIVE["svd-logistic"](splits.train, splits.valid, dim, seed=0)
    train, valid = (features(prepared, vectors, part) for part in ("train", "valid"))
    label = splits.valid["label"].to_numpy()

    def judged(scores: np.ndarray) -> UserAUCs:
        return UserAUCs(splits.valid["user_id"], label, scores)

    alone = judged(valid["score"].to_numpy())
    everyone = np.ones(len(alone.users))
    print(f"{len(valid)} validation rows of {len(alone.users)} users")
    print(f"the vectors: AUC {alone.auc(everyone):.4f}, UAUC {alone.uauc(everyone):.4f}")
    chosen: list[str] = []
    for name, columns in _COLUMNS.items():
        chosen += columns
        model = HistGradientBoostingClassifier(
            max_iter=150, learning_rate=0.04, max_leaf_nodes=12, min_samples_leaf=60, l2_regularization=5.0,
            random_state=0,
        ).fit(train[chosen], splits.train["label"])  # fmt: skip
        found = judged(model.predict_proba(valid[chosen])[:, 1])
        auc = differences([found], [alone], draws=500)["auc"]
        print(
            f"trees, {name}: AUC {found.auc(everyone):.4f}, UAUC {found.uauc(everyone):.4f}, difference in AUC "
            f"{auc.difference:+.4f} [{auc.low:+.4f}, {auc.high:+.4f}]"
        )


def features(prepared: PreparedData, vectors: CollaborativeEmbeddings, part: str) -> pd.DataFrame:
    """A column for each name in `_COLUMNS`, of the rows of a part, each from what came before it."""
    rows = prepared.splits.parts()[part]
    e_u = prepared.user_vectors(vectors, rows)
    table = vectors.item_table[vectors.lookup_items(rows["item_id"].tolist())]
    e_i = prepared.item_vectors(vectors, rows) if part == "train" else table
    assert e_u is not None and e_i is not None
    items, labels = pasts(rows, prepared.splits.of_users(rows["user_id"]))
    ratings = prepared.splits.train["item_id"].value_counts().reindex(rows["item_id"]).fillna(0).to_numpy()
    found = pd.DataFrame(
        {
            "score": (e_u * e_i).sum(1).numpy(),
            "of_item": e_i[:, -1].numpy(),
            "of_user": (e_u * e_i).sum(1).numpy() - e_i[:, -1].numpy(),
            "item_ratings": np.log1p(ratings - (part == "train")),
            "user_ratings": np.log1p(np.diff(items.offsets)),
        }
    )
    factors = vectors.items[:, :-2].numpy()
    factors = factors / np.linalg.norm(factors, axis=1, keepdims=True).clip(1e-9)
    places = {item: place for place, item in enumerate(vectors.item_ids)}
    usual = 1 / (1 + np.exp(-vectors.items[:, -1].numpy()))
    years = {item: _year(title) for item, title in prepared.data.titles.items()}
    mean = float(prepared.splits.train["label"].mean())
    ends = zip(rows["item_id"].tolist(), items.offsets[:-1], items.offsets[1:], strict=True)
    of_pasts = [
        _of_past(item, items.values[start:stop], labels.values[start:stop], places, factors, usual, years, mean)
        for item, start, stop in ends
    ]
    return pd.concat([found, pd.DataFrame(of_pasts)], axis=1)


def _of_past(
    item: object,
    past: np.ndarray,
    labels: np.ndarray,
    places: dict[object, int],
    factors: np.ndarray,
    usual: np.ndarray,
    years: dict[object, float],
    mean: float,
) -> dict[str, float]:
    """What a user's past says of an item, NaN where it says nothing. usual: of each item, how likely a like is."""
    row = dict.fromkeys(("last_five", "last", "alike", "how_alike", "like_the_last"), np.nan)
    row["user_mean"] = (labels.sum() + _SHRINKAGE * mean) / (len(labels) + _SHRINKAGE)
    year, told = years.get(item, np.nan), np.array([years.get(one, np.nan) for one in past])
    row["year"] = year
    for name, label in (("after_liked", 1), ("after_disliked", 0)):
        those = told[labels == label]
        row[name] = year - those.mean() if len(those) else np.nan
    if len(labels):
        row["last_five"], row["last"] = labels[-5:].mean(), labels[-1]
    known = np.array([one in places for one in past], dtype=bool)
    if item in places and known.any():
        of_known = np.array([places[one] for one in past[known]])
        cosines = factors[of_known] @ factors[places[item]]
        weights = np.exp(_STEEPNESS * cosines)
        row["alike"] = (weights * (labels[known] - usual[of_known])).sum() / (weights.sum() + 1)
        row["how_alike"], row["like_the_last"] = np.log(weights.sum()), cosines[-1]
    return row


def _year(title: str) -> float:
    found = re.search(r"\((\d{4})\)", title)
    return float(found[1]) if found else np.nan


if __name__ == "__main__":
    main()
