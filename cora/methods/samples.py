"""Whom the samples of a batch are about: users, items, and the users' vectors where those are more than a table's."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from cora.llm.batches import Prompts

Ids = Tensor | Sequence[int] | Sequence[str]


class Samples(NamedTuple):
    """user_ids, item_ids: B ids each, int64 tensor or list; user_vectors [B, d] float, e_u as of now, or None.

    without_item: bool [B], which of them are about their user alone: beginnings of prompts; None for none of them.
    """

    user_ids: Ids
    item_ids: Ids
    user_vectors: Tensor | None = None
    without_item: Tensor | None = None

    def check(self, batch: int, dim: int | None) -> None:
        """Raises ValueError naming what is not one per prompt. dim: the width of the vectors, where they are read."""
        for name, values in (("user_ids", self.user_ids), ("item_ids", self.item_ids)):
            shape = list(values.shape) if isinstance(values, Tensor) else [len(values)]
            if shape != [batch]:
                raise ValueError(f"{name}: expected [{batch}], one per row of input_ids, got {shape}")
        vectors = self.user_vectors
        if vectors is None or dim is None:
            return
        if vectors.shape != (batch, dim) or not vectors.is_floating_point():
            raise ValueError(
                f"user_vectors: expected float [{batch}, {dim}], one per row of input_ids and as wide as the "
                f"embeddings, got {vectors.dtype} {list(vectors.shape)}"
            )

    def of(self, prompts: Prompts) -> "Samples":
        """Those that have deltas of their own, where these are about whole prompts."""
        return self if prompts.rows is None else self.rows(prompts.rows)._replace(without_item=prompts.is_prefix)

    def rows(self, rows: list[int]) -> "Samples":
        """These samples alone."""
        users, items = ([ids[row] for row in rows] for ids in (_as_list(self.user_ids), _as_list(self.item_ids)))
        return Samples(users, items, None if self.user_vectors is None else self.user_vectors[rows])

    def owners(self) -> list[Any]:
        """Of each sample what tells whether another has the same user and the same vector, as `==` compares them."""
        users, vectors = _as_list(self.user_ids), self.user_vectors
        return users if vectors is None else list(zip(users, map(tuple, vectors.tolist()), strict=True))

    def repeated(self, copies: int) -> "Samples":
        """Every sample so many times in a row, as beam search repeats prompts."""
        users, items = ([one for one in _as_list(ids) for _ in range(copies)] for ids in (self.user_ids, self.item_ids))
        vectors = self.user_vectors
        return Samples(users, items, None if vectors is None else vectors.repeat_interleave(copies, 0))


def _as_list(ids: Ids) -> list[Any]:
    return ids.tolist() if isinstance(ids, Tensor) else list(ids)
