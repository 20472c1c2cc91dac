"""Ranks of the items that came next among all items, hit rates and NDCG, and how sure they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

CUTS = (1, 5, 10, 20)
_DRAWS = 1000
_MISS = np.iinfo(np.int64).max


def ranks_by_score(scores: np.ndarray, targets: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
    """int64 [n]: 1 + how many other items have the target's score or more: ties count against it.

    scores [n, items]; targets int64 [n]; seen bool [n, items], items that are not candidates: a target that is one of
    them is never found.
    """
    own = scores[np.arange(len(targets)), targets]
    above = scores >= own[:, None]
    if seen is not None:
        above &= ~seen
    rank = above.sum(1)
    rank[~np.isfinite(own)] = _MISS
    if seen is not None:
        rank[seen[np.arange(len(targets)), targets]] = _MISS
    return rank


def ranks_in_list(items: np.ndarray, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The same where only the best are known: items int64 [n, W], -1 for none, and their scores [n, W]. A target that
    is not among them is never found."""
    hit = items == targets[:, None]
    own = np.where(hit, scores, -np.inf).max(1)
    rank = ((scores >= own[:, None]) & (items >= 0)).sum(1)
    rank[~hit.any(1)] = _MISS
    return rank


@dataclass(frozen=True)
class Ranking:
    """ranks: int64 [n] of targets, from 1. users: int64 [n], whose they are: intervals draw users, not rows."""

    ranks: np.ndarray
    users: np.ndarray

    def values(self, measure: str, cut: int) -> np.ndarray:
        """[n] of each row HR@cut, 1 for a rank of at most `cut`, or NDCG@cut, 1 / log2(1 + rank) for one."""
        hit = self.ranks <= cut
        return hit.astype(float) if measure == "hr" else hit / np.log2(1.0 + self.ranks)

    def metrics(self, seed: int = 0) -> dict[str, dict[str, float]]:
        """{"hr@1": {"value", "low", "high", "error"}, …}: the mean over rows, 95 % of bootstrap draws over users, and
        the standard error of these."""
        draws = _draws(self.users, seed)
        found = {}
        for measure in ("hr", "ndcg"):
            for cut in CUTS:
                of_rows = self.values(measure, cut)
                drawn = _means(of_rows, self.users, draws)
                low, high = np.quantile(drawn, [0.025, 0.975])
                named = {"value": of_rows.mean(), "low": low, "high": high, "error": drawn.std()}
                found[f"{measure}@{cut}"] = {name: float(value) for name, value in named.items()}
        return found

    def lead(self, other: "Ranking", measure: str, cut: int, seed: int = 0) -> dict[str, float]:
        """The mean of this less that of another of the same rows, paired: value, low, high, error as in `metrics`."""
        difference = self.values(measure, cut) - other.values(measure, cut)
        drawn = _means(difference, self.users, _draws(self.users, seed))
        low, high = np.quantile(drawn, [0.025, 0.975])
        named = {"value": difference.mean(), "low": low, "high": high, "error": drawn.std()}
        return {name: float(value) for name, value in named.items()}


def as_table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Of {name: metrics} a line each, seen items kept or removed already: HR and NDCG at the cuts."""
    columns = [f"{measure}@{cut}" for measure in ("hr", "ndcg") for cut in CUTS]
    width = max((len(name) for name in results), default=0) + 2
    lines = [" " * width + "".join(f"{column:>10}" for column in columns)]
    for name, found in results.items():
        lines.append(f"{name:<{width}}" + "".join(f"{found[column]['value']:>10.4f}" for column in columns))
    return "\n".join(lines)


def _draws(users: np.ndarray, seed: int) -> np.ndarray:
    """[draws, users]: how often each user is drawn, with replacement."""
    count = len(np.unique(users))
    random = np.random.default_rng(seed)
    return random.multinomial(count, np.full(count, 1 / count), size=_DRAWS).astype(np.float64)


def _means(of_rows: np.ndarray, users: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The mean over rows for every draw of users."""
    _, user = np.unique(users, return_inverse=True)
    return (draws @ np.bincount(user, weights=of_rows)) / (draws @ np.bincount(user))
