"""Vectors of users as of a moment, from what they rated before it: nobody unknown, no vector that has seen its row."""

import hashlib
from typing import ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from cora.collaborative.embeddings import CollaborativeEmbeddings
from cora.collaborative.pasts import Asked, PastItems, PastLabels, pasts_of

_MOST_STEPS = 200  # vectors of matrix factorisation take 10
_CLOSE = 1e-6  # of a standard deviation of the prior
_CHUNK = 128


class FoldIn:
    """e_u = argmax_e  Σ_t log σ(±<e, e_t>) + log N(e; μ, Σ), over the user's past items t, + where liked, - where not.

    The posterior mode of logistic matrix factorisation with the items' vectors fixed; μ and Σ are mean and covariance
    of the users' table, so that there is nothing to choose: a user with no past has μ, one with a long past what the
    factorisation would have given them. Found by a bound that is quadratic in e and tight where it stands, maximised
    again and again: every step gains, whatever the size of the vectors.
    embeddings: those of a model whose <e_u, e_i> is the logit of a like, as `train_mf` makes them.
    Source of the bound: Jaakkola and Jordan, Bayesian parameter estimation via variational methods, 2000.
    """

    reads_item: ClassVar[bool] = False

    def __init__(self, embeddings: CollaborativeEmbeddings) -> None:
        self.embeddings = embeddings
        users = embeddings.users.double()
        self._mean = users.mean(0)
        centred = users - self._mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(users))
        self._root = vectors * values.clamp(min=0).sqrt()  # Σ = root @ root.T
        items = embeddings.item_table.double()
        self._features = torch.cat([items @ self._root, torch.zeros(1, items.shape[1], dtype=items.dtype)])
        self._offsets = torch.cat([items @ self._mean, torch.zeros(1, dtype=items.dtype)])

    def vectors(self, items: PastItems, labels: PastLabels, asked: Asked = None) -> Tensor:
        """[n, d] in the tables' dtype: the vectors of n users who rated `items`[n][…] with `labels`[n][…], 1 or 0.
        asked: not read.

        Items that the embeddings do not have count as their mean. Raises ValueError for lists of different lengths.
        """
        pasts = pasts_of(self.embeddings, items, labels)
        lengths = pasts.lengths.tolist()
        rows, liked = pasts.items.split(lengths), pasts.labels.double().split(lengths)
        # Users of one past, such as one user asked of many items, have one vector: it is found once.
        firsts: dict[bytes, int] = {}
        same = [firsts.setdefault(_digest(*past), row) for row, past in enumerate(zip(rows, liked, strict=True))]
        order = sorted(firsts.values(), key=lengths.__getitem__)
        found = self._mean.repeat(len(rows), 1)
        with tqdm(total=len(order), desc="fold-in", unit="user", delay=2) as bar:
            for start in range(0, len(order), _CHUNK):
                chunk = order[start : start + _CHUNK]
                found[chunk] += self._modes([rows[one] for one in chunk], [liked[one] for one in chunk])
                bar.update(len(chunk))
        return found[same].to(self.embeddings.users.dtype)

    def _modes(self, rows: list[Tensor], labels: list[Tensor]) -> Tensor:
        """e_u - μ [b, d], found in the coordinates where the prior is N(0, 1)."""
        padding = len(self._offsets) - 1
        past = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
        liked = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=0.5)
        features, offsets = self._features[past], self._offsets[past]  # [b, t, d], zero where padded
        mode = features.new_zeros(len(rows), features.shape[2])
        unit = torch.eye(features.shape[2], dtype=features.dtype)
        for _ in range(_MOST_STEPS):
            logits = torch.einsum("btd,bd->bt", features, mode) + offsets
            # log σ(s) >= s/2 - curvature·s²/2 + constant, with equality at s = ±logits; tanh(s/2)/(2s) is 1/4 at 0.
            curvature = torch.where(logits.abs() < 1e-4, 0.25, torch.tanh(logits / 2) / (2 * logits))
            target = torch.einsum("btd,bt->bd", features, liked - 0.5 - curvature * offsets)
            before, mode = mode, torch.linalg.solve(features.mT @ (features * curvature[..., None]) + unit, target)
            if bool(((mode - before).abs() < _CLOSE).all()):
                break
        return mode @ self._root.T


def _digest(*tensors: Tensor) -> bytes:
    return hashlib.blake2b(b"".join(one.numpy().tobytes() for one in tensors), digest_size=16).digest()
