"""The fit that collaborative models share: epochs of pointwise cross-entropy, stopped by the validation AUC."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from cora.collaborative.embeddings import CollaborativeEmbeddings, with_mean


class CollaborativeModel(Protocol):
    """Logits of likes [n] of user rows and item rows [n], int64; and the vectors whose inner product they are."""

    def __call__(self, user: Tensor, item: Tensor) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def vectors(self) -> tuple[Tensor, Tensor]:
        """e_u [U, d] and e_i [I, d], detached."""


@dataclass(frozen=True)
class FitResult:
    """A trained collaborative model: valid AUC after every epoch, and the epoch whose vectors were kept."""

    embeddings: CollaborativeEmbeddings
    valid_aucs: list[float]
    best_epoch: int

    @property
    def valid_auc(self) -> float:
        return self.valid_aucs[self.best_epoch]

    def score(self, frame: pd.DataFrame) -> np.ndarray:
        """score = <e_u, e_i>, float32 [rows], for the rows' user_id and item_id; unknown ids get the mean embedding."""
        return self.embeddings.score(frame["user_id"].tolist(), frame["item_id"].tolist()).numpy()


def fit(
    name: str,
    make: Callable[[int, int, torch.Generator], CollaborativeModel],
    train: pd.DataFrame,
    valid: pd.DataFrame,
    *,
    learning_rate: float,
    weight_decay: float,
    batch_size: int,
    max_epochs: int,
    patience: int,
    seed: int,
) -> FitResult:
    """minimise BCE(logit, label) by Adam over the rows of train; the epoch of the best AUC on valid is kept.

    make: the model, from the numbers of users and items of train and the source of its random numbers. train, valid:
    frames with user_id, item_id, label (0 or 1). Stops after `patience` epochs without a better valid AUC.
    Deterministic given the seed; no global random state is touched. name: what the progress bar calls it.

    Raises ValueError, naming the frame, for a missing column, no rows or labels of one class only.
    """
    rows = TrainingRows.of(train, valid)
    generator = torch.Generator().manual_seed(seed)
    model = make(len(rows.user_ids), len(rows.item_ids), generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, weight_decay=weight_decay)

    aucs: list[float] = []
    best_epoch, best = 0, model.vectors()
    with tqdm(total=max_epochs, desc=name, unit="epoch", delay=2) as bar:
        while len(aucs) < max_epochs and len(aucs) - best_epoch <= patience:
            for chosen in torch.randperm(len(train), generator=generator).split(batch_size):
                user, item, label = (column[chosen] for column in (rows.user, rows.item, rows.label))
                optimizer.zero_grad()
                functional.binary_cross_entropy_with_logits(model(user, item), label).backward()
                optimizer.step()
            vectors = model.vectors()
            aucs.append(rows.valid_auc(*vectors))
            if len(aucs) == 1 or aucs[-1] > aucs[best_epoch]:
                best_epoch, best = len(aucs) - 1, vectors
            bar.set_postfix(valid_auc=f"{aucs[best_epoch]:.4f}", refresh=False)
            bar.update()
    return FitResult(CollaborativeEmbeddings(rows.user_ids, rows.item_ids, *best), aucs, best_epoch)


@dataclass(frozen=True)
class TrainingRows:
    """Ratings as rows of tables: user, item [n] int64 and label [n] float32 of train, the id of every row of a table,
    and valid to judge tables by."""

    user: Tensor
    item: Tensor
    label: Tensor
    user_ids: list[Any]
    item_ids: list[Any]
    valid_user: Tensor
    valid_item: Tensor
    valid_label: np.ndarray

    @classmethod
    def of(cls, train: pd.DataFrame, valid: pd.DataFrame) -> "TrainingRows":
        """Raises ValueError, naming the frame, for a missing column, no rows or labels of one class only."""
        for part, frame in (("train", train), ("valid", valid)):
            _check(part, frame)
        user, user_ids = pd.factorize(train["user_id"], sort=True)
        item, item_ids = pd.factorize(train["item_id"], sort=True)
        return cls(
            torch.from_numpy(user),
            torch.from_numpy(item),
            torch.from_numpy(train["label"].to_numpy(np.float32)),
            user_ids.tolist(),
            item_ids.tolist(),
            _rows(user_ids, valid["user_id"]),
            _rows(item_ids, valid["item_id"]),
            valid["label"].to_numpy(),
        )

    def valid_auc(self, users: Tensor, items: Tensor) -> float:
        """The AUC on valid of <e_u, e_i> of the tables e_u [U, d] and e_i [I, d]."""
        e_u, e_i = with_mean(users)[self.valid_user], with_mean(items)[self.valid_item]
        return float(roc_auc_score(self.valid_label, (e_u * e_i).sum(1)))


def _rows(known: pd.Index | np.ndarray, ids: pd.Series) -> Tensor:
    """The row of each id, the one after the last for those unknown."""
    rows = pd.Index(known).get_indexer(ids)
    return torch.from_numpy(np.where(rows < 0, len(known), rows))


def _check(name: str, frame: pd.DataFrame) -> None:
    missing = [column for column in ("user_id", "item_id", "label") if column not in frame]
    if missing:
        raise ValueError(f"{name}: missing column {', '.join(missing)}; found {list(frame)}")
    if frame.empty:
        raise ValueError(f"{name}: no rows")
    found = sorted(frame["label"].unique().tolist())
    if found != [0, 1]:
        raise ValueError(f"{name}: label must hold both 0 and 1 and nothing else, found {found[:5]}")
