"""Logistic regression of each user on item factors that have seen no label: the SVD of who rated what."""

from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from cora.collaborative.embeddings import CollaborativeEmbeddings
from cora.collaborative.fitting import FitResult, TrainingRows, check_dim, with_biases
from cora.collaborative.item_factors import item_factors

_SWEEPS = 15  # on ML-1M the valid AUC moves by less than 2e-4 after ten
_LAST_SWEEPS = 2  # over all rows, where the others see a part of them
_ROWS = 2_000_000  # of so many rows the priors and the items are known as well as of all
_PADDED = 1 << 16  # rows of users that are updated together, those that fill up included
_LEAST_VARIANCE = 1e-6


def train_svd_logistic(
    train: pd.DataFrame, valid: pd.DataFrame, dim: int = 32, *, seed: int = 0
) -> tuple[CollaborativeEmbeddings, FitResult]:
    """label ~ Bernoulli(σ(<w_u, z_i> + b_u + c_i)),  [w_u, b_u] ~ N(μ, Σ),  c_i ~ N(m, v),  z_i fixed.

    z_i, dim - 2 wide, are `item_factors`, which never saw a label and so have memorised none that a language model will
    be trained on. Posterior of w, b and c by mean-field sweeps under a bound of log σ that is quadratic; μ, Σ, m and v
    are those of highest evidence, so there is nothing to choose but dim. Of more than two million rows the sweeps see
    users drawn by the seed who have so many, and all of them at the end.
    e_u = [w_u, b_u, 1], e_i = [z_i, 1, c_i] at the posterior means, fp32; a user as of a moment is folded in.

    train, valid, what is returned and raised: as of `train_mf`. All sweeps are kept: valid is only looked at.
    Source of the bound: Jaakkola and Jordan, Bayesian parameter estimation via variational methods, 2000.
    """
    check_dim(dim)
    rows = TrainingRows.of(train, valid)
    posterior = _Posterior(rows, item_factors(rows, dim - 2, seed))
    drawn = _drawn_users(rows, seed)
    everyone = torch.arange(len(rows.user_ids))
    last = [everyone] * (_LAST_SWEEPS if len(drawn) < len(everyone) else 0)
    aucs = []
    for of in tqdm([drawn] * _SWEEPS + last, desc="SVD-logistic", unit="sweep", delay=2):
        posterior.sweep(of)
        if len(of) == len(everyone):
            users, items = posterior.vectors()
            aucs.append(rows.valid_auc(users, items))
    embeddings = CollaborativeEmbeddings(rows.user_ids, rows.item_ids, users, items, "fold-in")
    return embeddings, FitResult(embeddings, aucs, len(aucs) - 1)


def _drawn_users(rows: TrainingRows, seed: int) -> Tensor:
    """All users, or as many, drawn at random, as have `_ROWS` rows."""
    users = len(rows.user_ids)
    if len(rows.user) <= _ROWS:
        return torch.arange(users)
    order = torch.randperm(users, generator=torch.Generator().manual_seed(seed))
    so_far = torch.bincount(rows.user, minlength=users)[order].cumsum(0)
    return order[: max(1, int((so_far <= _ROWS).sum()))]


class _Posterior:
    """Mean-field posterior of each user's [w, b] and each item's c, and the prior that they share.

    Rows are sorted by user. Of each are kept mean and variance of its user's part of the logit, <w, z_i> + b.
    """

    def __init__(self, rows: TrainingRows, factors: Tensor) -> None:
        order = rows.user.argsort(stable=True)
        self._item, self._sign = rows.item[order], 2 * rows.label[order].double() - 1
        self._sizes = torch.bincount(rows.user, minlength=len(rows.user_ids))
        self._starts = self._sizes.cumsum(0) - self._sizes
        items = len(rows.item_ids)
        self._factors = factors
        self._features = torch.cat([factors, factors.new_ones(items, 1)], 1)  # of [w, b]
        width = self._features.shape[1]
        self._prior_mean, self._prior_covariance = factors.new_zeros(width), torch.eye(width, dtype=factors.dtype)
        self._users = factors.new_zeros(len(self._sizes), width)
        self._c, self._c_variance = factors.new_zeros(items), factors.new_ones(items)
        self._c_prior_mean, self._c_prior_variance = 0.0, 1.0
        self._fitted = factors.new_zeros(len(order))
        self._fitted_variance = self._features.square().sum(1)[self._item]

    def sweep(self, of: Tensor) -> None:
        """Each of the users `of` [n] given the items, every item given these users, the prior given both."""
        covariance = self._update_users(of)
        self._update_items(self._rows(of))
        self._prior_mean = self._users[of].mean(0)
        spread = self._users[of] - self._prior_mean
        self._prior_covariance = spread.T @ spread / len(spread) + covariance
        self._prior_covariance.diagonal().add_(_LEAST_VARIANCE)
        self._c_prior_mean = float(self._c.mean())
        self._c_prior_variance = float(((self._c - self._c_prior_mean).square() + self._c_variance).mean())

    def _rows(self, of: Tensor) -> Tensor | slice:
        if len(of) == len(self._sizes):
            return slice(None)
        chosen = torch.zeros(len(self._sizes), dtype=torch.bool)
        chosen[of] = True
        return chosen.repeat_interleave(self._sizes).nonzero().squeeze(1)

    def _update_users(self, of: Tensor) -> Tensor:
        """Returns the mean of the users' covariances."""
        prior = torch.linalg.inv(self._prior_covariance)
        total = torch.zeros_like(prior)
        for users in self._alike(of):
            # [users, most rows]: a user with fewer rows is filled up with rows of weight zero.
            place = torch.arange(int(self._sizes[users[-1]]))
            there = place < self._sizes[users, None]
            row = torch.where(there, self._starts[users, None] + place, 0)
            item = self._item[row]
            curvature = self._curvatures(row) * there
            features = self._features[item]
            weighted = features.transpose(1, 2) * (2 * curvature)[:, None]
            covariance = torch.linalg.inv(prior + weighted @ features)
            answers = self._sign[row] / 2 * there - 2 * curvature * self._c[item]
            target = prior @ self._prior_mean + (features.transpose(1, 2) @ answers[..., None]).squeeze(2)
            self._users[users] = (covariance @ target[..., None]).squeeze(2)
            fitted = (features @ self._users[users][..., None]).squeeze(2)
            variance = ((features @ covariance) * features).sum(2)
            self._fitted[row[there]], self._fitted_variance[row[there]] = fitted[there], variance[there]
            total += covariance.sum(0)
        return total / len(of)

    def _alike(self, of: Tensor) -> Iterator[Tensor]:
        """The users in groups that have about as many rows each, the one with the most last."""
        users = of[self._sizes[of].argsort(stable=True)]
        sizes = self._sizes[users].tolist()
        start = 0
        while start < len(sizes):
            stop = start + 1
            while stop < len(sizes) and (stop + 1 - start) * sizes[stop] <= _PADDED:
                stop += 1
            yield users[start:stop]
            start = stop

    def _update_items(self, rows: Tensor | slice) -> None:
        item, curvature = self._item[rows], self._curvatures(rows)
        precision = torch.full_like(self._c, 1 / self._c_prior_variance).index_add_(0, item, 2 * curvature)
        target = torch.full_like(self._c, self._c_prior_mean / self._c_prior_variance)
        target.index_add_(0, item, self._sign[rows] / 2 - 2 * curvature * self._fitted[rows])
        self._c, self._c_variance = target / precision, 1 / precision

    def _curvatures(self, rows: Tensor | slice) -> Tensor:
        """tanh(ξ/2) / (4ξ), ξ² = E[s²] of each row's logit s: log σ(±s) >= ±s/2 - curvature·(s² - ξ²) + constant."""
        item = self._item[rows]
        mean = self._fitted[rows] + self._c[item]
        xi = (mean.square() + self._fitted_variance[rows] + self._c_variance[item]).clamp(min=1e-8).sqrt()
        return torch.tanh(xi / 2) / (4 * xi)

    def vectors(self) -> tuple[Tensor, Tensor]:
        """e_u and e_i at the posterior means, fp32."""
        users, items = with_biases(self._users[:, :-1], self._users[:, -1], self._factors, self._c)
        return users.float(), items.float()
