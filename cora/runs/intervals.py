"""How sure a difference between two columns of scores is: paired bootstrap intervals over users."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

_DRAWS = 1000


class Interval(NamedTuple):
    """A difference, and the values between which 95 % of its bootstrap draws lie."""

    difference: float
    low: float
    high: float


class UserAUCs:
    """AUC and UAUC of scores over any multiset of users.

    user_ids, labels (0 or 1), scores: one a row. `users`: the distinct ids, in the order of the weights that `auc` and
    `uauc` take: how often each user counts [users].
    """

    def __init__(self, user_ids: pd.Series | np.ndarray, labels: np.ndarray, scores: np.ndarray) -> None:
        codes, self.users = pd.factorize(user_ids, sort=True)
        order = np.argsort(scores, kind="stable")
        self._codes, self._liked, ranked = codes[order], labels[order] == 1, scores[order]
        self._starts = _starts(ranked)
        by_user = np.argsort(self._codes, kind="stable")
        ends = np.cumsum(np.bincount(self._codes, minlength=len(self.users)))[:-1]
        own = [_auc(self._liked[rows], _starts(ranked[rows]), np.ones(len(rows))) for rows in np.split(by_user, ends)]
        self._own = np.array(own)

    def auc(self, weights: np.ndarray) -> float:
        """The AUC of all rows; NaN where those that count have one label."""
        return _auc(self._liked, self._starts, weights[self._codes])

    def uauc(self, weights: np.ndarray) -> float:
        """The mean AUC of the users who have both labels; NaN where none of those counts."""
        weights = np.where(np.isnan(self._own), 0.0, weights)
        total = weights.sum()
        return float(np.nansum(self._own * weights) / total) if total else float("nan")


def differences(
    ours: Sequence[UserAUCs], others: Sequence[UserAUCs], seed: int = 0, draws: int = _DRAWS
) -> dict[str, Interval]:
    """auc and uauc: the mean over seeds of ours less the other's, with its 95 % interval.

    ours, others: of each seed one, over the same rows. Each draw takes as many users as there are, with replacement,
    the same ones for both sides and, where the seeds have the same users, for all seeds: rows of one user are not
    independent, users are taken to be. Deterministic given the seed. NaN where a side has no AUC, for rows of one label
    or no rows.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile intervals).
    """
    random = np.random.default_rng(seed)
    users = sorted({user for one in ours for user in one.users})
    places = [np.searchsorted(users, one.users) for one in ours]
    whole = _differences(ours, others, [np.ones(len(one.users)) for one in ours])
    if all(map(np.isnan, whole.values())):
        return {name: Interval(value, value, value) for name, value in whole.items()}
    found: dict[str, list[float]] = {"auc": [], "uauc": []}
    with tqdm(total=draws, desc="intervals", delay=2) as bar:
        for _ in range(draws):
            counts = np.bincount(random.integers(0, len(users), len(users)), minlength=len(users)).astype(np.float64)
            for name, values in _differences(ours, others, [counts[place] for place in places]).items():
                found[name].append(values)
            bar.update()
    return {name: _interval(whole[name], values) for name, values in found.items()}


def leads(ours: Sequence[pd.DataFrame], others: Sequence[pd.DataFrame]) -> dict[str, list[float | None]]:
    """By how much ours is better in AUC and UAUC, each a difference and its 95 % interval: over all rows as auc and
    uauc, and over those of cold items, where they are marked, as cold_items_auc and cold_items_uauc.

    ours, others: of each seed the same rows with user_id, label and score. None for what the rows do not tell.
    """
    parts = {"": lambda one: one}
    if "cold_item" in ours[0]:
        parts["cold_items_"] = lambda one: one[one["cold_item"]]
    found: dict[str, list[float | None]] = {}
    for part, of in parts.items():
        mine, theirs = ([_aucs(of(one)) for one in frames] for frames in (ours, others))
        for name, lead in differences(mine, theirs).items():
            found[part + name] = [None if np.isnan(one) else one for one in lead]
    return found


def lead_text(values: Sequence[float | None]) -> str:
    """One of `leads` for a table, 26 characters."""
    difference, low, high = values
    if difference is None or low is None or high is None:
        return f"{'-':^26}"
    return f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]"


def _aucs(rows: pd.DataFrame) -> UserAUCs:
    return UserAUCs(rows["user_id"], rows["label"].to_numpy(), rows["score"].to_numpy(np.float64))


def _interval(difference: float, drawn: Sequence[float]) -> Interval:
    """What all rows do not tell no draw tells either."""
    if np.isnan(difference):
        return Interval(difference, difference, difference)
    return Interval(difference, *map(float, np.nanquantile(np.array(drawn), [0.025, 0.975])))


def _differences(
    ours: Sequence[UserAUCs], others: Sequence[UserAUCs], weights: Sequence[np.ndarray]
) -> dict[str, float]:
    measures: Mapping[str, Callable[[UserAUCs, np.ndarray], float]] = {"auc": UserAUCs.auc, "uauc": UserAUCs.uauc}
    return {
        name: float(np.mean([of(a, w) - of(b, w) for a, b, w in zip(ours, others, weights, strict=True)]))
        for name, of in measures.items()
    }


def _starts(scores: np.ndarray) -> np.ndarray:
    """Where runs of equal scores begin, in ascending scores."""
    return np.flatnonzero(np.diff(scores, prepend=-np.inf))


def _auc(liked: np.ndarray, starts: np.ndarray, weights: np.ndarray) -> float:
    """The AUC of rows in ascending order of score. Rows of one score, from each of `starts` to the next, are one place:
    each wins half of a comparison within it. NaN for one label."""
    positive = weights * liked
    negative = weights - positive
    if not positive.any() or not negative.any():
        return float("nan")
    if len(starts) < len(weights):
        positive, negative = np.add.reduceat(positive, starts), np.add.reduceat(negative, starts)
    before = np.cumsum(negative)
    wins = positive @ (before - 0.5 * negative)
    return float(wins / (positive.sum() * before[-1]))
