"""The fit that collaborative models share: epochs of pointwise cross-entropy, stopped by the validation AUC."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from cora.collaborative.embeddings import CollaborativeEmbeddings, with_mean

_State = TypeVar("_State")


class Recipe(NamedTuple):
    """How `epochs` trains: Adam's rate and L2 weight decay, rows in a batch, most epochs, and the epochs without a
    better valid AUC after which it stops."""

    learning_rate: float
    weight_decay: float
    batch_size: int
    max_epochs: int
    patience: int


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
    make: Callable[["TrainingRows", torch.Generator], CollaborativeModel],
    train: pd.DataFrame,
    valid: pd.DataFrame,
    recipe: Recipe,
    seed: int,
) -> FitResult:
    """minimise BCE(logit, label) by Adam over the rows of train; the epoch of the best AUC on valid is kept.

    make: the model, from the rows of train and the source of its random numbers. train, valid: frames with user_id,
    item_id, label (0 or 1). Deterministic given the seed; no global random state is touched. name: what the progress
    bar calls it.

    Raises ValueError, naming the frame, for a missing column, no rows or labels of one class only.
    """
    rows = TrainingRows.of(train, valid)
    generator = torch.Generator().manual_seed(seed)
    model = make(rows, generator)

    def loss(batch: Tensor) -> Tensor:
        logits = model(rows.user[batch], rows.item[batch])
        return functional.binary_cross_entropy_with_logits(logits, rows.label[batch])

    def batches() -> Sequence[Tensor]:
        return torch.randperm(len(train), generator=generator).split(recipe.batch_size)

    def valid_auc(vectors: tuple[Tensor, Tensor]) -> float:
        return rows.valid_auc(*vectors)

    vectors, aucs, best = epochs(name, model.parameters(), batches, loss, model.vectors, valid_auc, recipe)
    return FitResult(CollaborativeEmbeddings(rows.user_ids, rows.item_ids, *vectors, "fold-in"), aucs, best)


def epochs(
    name: str,
    parameters: Iterator[nn.Parameter],
    batches: Callable[[], Sequence[Tensor]],
    loss: Callable[[Tensor], Tensor],
    state: Callable[[], _State],
    valid_auc: Callable[[_State], float],
    recipe: Recipe,
) -> tuple[_State, list[float], int]:
    """Adam over the batches of every epoch, until `patience` epochs have brought no better valid AUC.

    batches: the rows of each step of an epoch; loss: of a batch; state: what is kept of the best epoch, a copy.
    Returns the best state, the valid AUC of every epoch, and which of them was the best.
    """
    optimizer = torch.optim.Adam(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    aucs: list[float] = []
    best_epoch, best = 0, state()
    with tqdm(total=recipe.max_epochs, desc=name, unit="epoch", delay=2) as bar:
        while len(aucs) < recipe.max_epochs and len(aucs) - best_epoch <= recipe.patience:
            for batch in batches():
                optimizer.zero_grad()
                loss(batch).backward()
                optimizer.step()
            now = state()
            aucs.append(valid_auc(now))
            if len(aucs) == 1 or aucs[-1] > aucs[best_epoch]:
                best_epoch, best = len(aucs) - 1, now
            bar.set_postfix(valid_auc=f"{aucs[best_epoch]:.4f}", refresh=False)
            bar.update()
    return best, aucs, best_epoch


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
            row_of(user_ids, valid["user_id"]),
            row_of(item_ids, valid["item_id"]),
            valid["label"].to_numpy(),
        )

    def valid_auc(self, users: Tensor, items: Tensor) -> float:
        """The AUC on valid of <e_u, e_i> of the tables e_u [U, d] and e_i [I, d]."""
        e_u, e_i = with_mean(users)[self.valid_user], with_mean(items)[self.valid_item]
        return float(roc_auc_score(self.valid_label, (e_u * e_i).sum(1)))


def row_of(known: pd.Index | Sequence, ids: pd.Series | np.ndarray) -> Tensor:
    """int64 [n]: the row of each id, the one after the last for those unknown."""
    rows = pd.Index(known).get_indexer(ids)
    return torch.from_numpy(np.where(rows < 0, len(known), rows))


def check_dim(dim: int) -> None:
    """Raises ValueError for vectors that have no room for a factor beside the two places of the biases."""
    if dim < 3:
        raise ValueError(f"dim: expected at least 3, one factor and two places for the biases, got {dim}")


def check_times(train: pd.DataFrame, valid: pd.DataFrame) -> None:
    """Raises ValueError, naming the frame, where there are no times."""
    for part, frame in (("train", train), ("valid", valid)):
        if "timestamp" not in frame:
            raise ValueError(f"{part}: missing column timestamp; found {list(frame)}")


def with_biases(p: Tensor, b: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """e_u = [p_u, b_u, 1] and e_i = [q_i, 1, c_i], whose inner product is <p_u, q_i> + b_u + c_i."""
    b, c = b[:, None], c[:, None]
    return torch.cat([p, b, torch.ones_like(b)], 1), torch.cat([q, torch.ones_like(c), c], 1)


def _check(name: str, frame: pd.DataFrame) -> None:
    missing = [column for column in ("user_id", "item_id", "label") if column not in frame]
    if missing:
        raise ValueError(f"{name}: missing column {', '.join(missing)}; found {list(frame)}")
    if frame.empty:
        raise ValueError(f"{name}: no rows")
    found = sorted(frame["label"].unique().tolist())
    if found != [0, 1]:
        raise ValueError(f"{name}: label must hold both 0 and 1 and nothing else, found {found[:5]}")
