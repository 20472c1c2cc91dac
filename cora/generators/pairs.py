"""What a generator reads of a pair: standardised vectors of the user and the item, and their affinity."""

import torch
from torch import Tensor, nn

from cora.collaborative import CollaborativeEmbeddings


class Pairs(nn.Module):
    """(rows of users [B], or vectors of users [B, d]; of items likewise) -> e_u [B, d], e_i [B, d], affinity [B], fp32.

    Each table is centred and scaled to unit mean square; the row after the last, of unknown ids, is the mean and hence
    zero. affinity is the inner product of the vectors as they came, what matrix factorisation ranks by, centred and
    scaled to unit variance over all pairs: given apart, because no other part of it is more than one column in d.
    """

    users: Tensor
    items: Tensor
    user_mean: Tensor
    item_mean: Tensor
    user_axis: Tensor
    item_axis: Tensor
    item_part: Tensor

    def __init__(self, embeddings: CollaborativeEmbeddings) -> None:
        super().__init__()
        users, items = embeddings.users.double(), embeddings.items.double()
        u, i = users - users.mean(0), items - items.mean(0)
        # <users, items> = <u, i> + <u, mean item> + <mean user, i> + constant, uncorrelated over all pairs.
        user_part, item_part = u @ items.mean(0), i @ users.mean(0)
        together = ((u.T @ u / len(u)) * (i.T @ i / len(i))).sum()
        deviation = (together + user_part.square().mean() + item_part.square().mean()).sqrt().clamp(min=1e-12)
        sizes = [table.square().mean().sqrt().clamp(min=1e-12) for table in (u, i)]
        self.user_size, self.item_size = map(float, sizes)
        self.together = float(sizes[0] * sizes[1] / deviation)
        for name, rows in (("users", u / sizes[0]), ("items", i / sizes[1]), ("item_part", item_part / deviation)):
            self.register_buffer(name, torch.cat([rows, torch.zeros_like(rows[:1])]).float(), persistent=False)
        self.register_buffer("user_mean", users.mean(0).float(), persistent=False)
        self.register_buffer("item_mean", items.mean(0).float(), persistent=False)
        self.register_buffer("user_axis", (sizes[0] / deviation * items.mean(0)).float(), persistent=False)
        self.register_buffer("item_axis", (sizes[1] / deviation * users.mean(0)).float(), persistent=False)

    def forward(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        users, items = users.to(self.users.device), items.to(self.users.device)
        e_u = (users.float() - self.user_mean) / self.user_size if users.is_floating_point() else self.users[users]
        if items.is_floating_point():
            e_i = (items.float() - self.item_mean) / self.item_size
            item_part = e_i @ self.item_axis
        else:
            e_i, item_part = self.items[items], self.item_part[items]
        return e_u, e_i, self.together * (e_u * e_i).sum(-1) + e_u @ self.user_axis + item_part
