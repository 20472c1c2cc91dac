"""What guesses the next item without a language model, in closed form: popularity, item cosine, Markov, EASE."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse

# Histories, oldest first, as rows of the items -> scores [n, items].
Scores = Callable[[Sequence[np.ndarray]], np.ndarray]


def popularity(training: Sequence[np.ndarray], items: int) -> Scores:
    """score_j = how often j occurs in the training sequences, whatever the history is."""
    counts = np.bincount(np.concatenate([*training, np.zeros(0, dtype=np.int64)]), minlength=items).astype(np.float64)
    return lambda histories: np.tile(counts, (len(histories), 1))


def item_cosine(training: Sequence[np.ndarray], items: int, newest: int = 5) -> Scores:
    """score_j = sum over the newest items i of the history of <x_i, x_j> / (|x_i|·|x_j|), x_i who has i, 0 or 1.

    Source: Sarwar et al., Item-based collaborative filtering, WWW 2001.
    """
    together = _together(training, items)
    sizes = np.sqrt(np.maximum(together.diagonal(), 1.0))
    similarity = together / sizes[:, None] / sizes
    np.fill_diagonal(similarity, 0.0)
    return lambda histories: _of_newest(histories, items, newest) @ similarity


def markov(training: Sequence[np.ndarray], items: int, newest: int = 5) -> Scores:
    """score_j = sum over the newest items i of the history of n_ij / n_i, n_ij how often j comes right behind i.

    Popularity breaks the ties of items that come behind none of them.
    """
    pairs = [np.stack([one[:-1], one[1:]]) for one in training if len(one) > 1]
    behind = np.concatenate([*pairs, np.zeros((2, 0), dtype=np.int64)], axis=1)
    counts = sparse.csr_matrix((np.ones(behind.shape[1]), (behind[0], behind[1])), shape=(items, items)).toarray()
    transitions = counts / np.maximum(counts.sum(1, keepdims=True), 1.0)
    popular = popularity(training, items)([np.zeros(0)])[0]
    tie = 1e-9 * popular / max(popular.max(), 1.0)
    return lambda histories: _of_newest(histories, items, newest) @ transitions + tie


def ease(training: Sequence[np.ndarray], items: int, newest: int = 10, regularisation: float = 250.0) -> Scores:
    """score = x·B, x the newest items of the history, B = I - P·diag(1 / diag P), P = (XᵀX + λ·I)⁻¹, X who has what.

    B is the linear map of least squared error from X to X with a zero diagonal. Source: Steck, Embarrassingly shallow
    autoencoders for sparse data, WWW 2019.
    """
    inverse = np.linalg.inv(_together(training, items) + regularisation * np.eye(items))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return lambda histories: _of_newest(histories, items, newest) @ weights


# name -> (training sequences, number of items) -> scores of histories
BASELINES: dict[str, Callable[[Sequence[np.ndarray], int], Scores]] = {
    "popularity": popularity,
    "item cosine": item_cosine,
    "Markov": markov,
    "EASE": ease,
}


def _together(training: Sequence[np.ndarray], items: int) -> np.ndarray:
    """XᵀX [items, items] of X [users, items], 1 where a user has an item."""
    user = np.repeat(np.arange(len(training)), [len(one) for one in training])
    item = np.concatenate([*training, np.zeros(0, dtype=np.int64)])
    x = sparse.csr_matrix((np.ones(len(item)), (user, item)), shape=(len(training), items))
    x.data[:] = 1.0  # of items that a user has twice
    return np.asarray((x.T @ x).toarray())


def _of_newest(histories: Sequence[np.ndarray], items: int, newest: int) -> sparse.csr_matrix:
    """[n, items]: 1 for each of the newest items of each history."""
    kept = [np.unique(np.asarray(one, dtype=np.int64)[-newest:]) for one in histories]
    row = np.repeat(np.arange(len(kept)), [len(one) for one in kept])
    item = np.concatenate([*kept, np.zeros(0, dtype=np.int64)])
    return sparse.csr_matrix((np.ones(len(item)), (row, item)), shape=(len(kept), items))
