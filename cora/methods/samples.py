"""Whom the samples of a batch are about: users, items, and their vectors where those are more than a table's."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from cora.llm.batches import Prompts

Ids = Tensor | Sequence[int] | Sequence[str]


class Samples(NamedTuple):
    """user_ids, item_ids: B ids each, int64 tensor or list; user_vectors [B, d] float, e_u as of now, or None.
    item_vectors [B, d] float, e_i as it would be without the sample's label, or None.
    unknown_users, unknown_items: bool [B], which of them training takes for unknown; None where that is not drawn.
    without_item: bool [B], which of them are about their user alone: beginnings of prompts; None for none of them.
    """

    user_ids: Ids
    item_ids: Ids
    user_vectors: Tensor | None = None
    without_item: Tensor | None = None
    item_vectors: Tensor | None = None
    unknown_users: Tensor | None = None
    unknown_items: Tensor | None = None

    def check(self, batch: int, dim: int | None) -> None:
        """Raises ValueError naming what is not one per prompt. dim: the width of the vectors, where they are read."""
        for name, values in (("user_ids", self.user_ids), ("item_ids", self.item_ids)):
            shape = list(values.shape) if isinstance(values, Tensor) else [len(values)]
            if shape != [batch]:
                raise ValueError(f"{name}: expected [{batch}], one per row of input_ids, got {shape}")
        for name, vectors in (("user_vectors", self.user_vectors), ("item_vectors", self.item_vectors)):
            if vectors is None or dim is None:
                continue
            if vectors.shape != (batch, dim) or not vectors.is_floating_point():
                raise ValueError(
                    f"{name}: expected float [{batch}, {dim}], one per row of input_ids and as wide as the "
                    f"embeddings, got {vectors.dtype} {list(vectors.shape)}"
                )

    def of(self, prompts: Prompts) -> "Samples":
        """Those that have deltas of their own, where these are about whole prompts."""
        return self if prompts.rows is None else self.rows(prompts.rows)._replace(without_item=prompts.is_prefix)

    def rows(self, rows: list[int]) -> "Samples":
        """These samples alone."""
        users, items = ([ids[row] for row in rows] for ids in (_as_list(self.user_ids), _as_list(self.item_ids)))
        return self._replace(user_ids=users, item_ids=items, **self._of_tensors(lambda one: one[rows]))

    def owners(self) -> list[Any]:
        """Of each sample what tells whether another has the same user and the same vector, as `==` compares them."""
        told = [one.tolist() for one in (self.user_vectors, self.unknown_users) if one is not None]
        told = [[tuple(one) if isinstance(one, list) else one for one in column] for column in told]
        return list(zip(_as_list(self.user_ids), *told, strict=True))

    def repeated(self, copies: int) -> "Samples":
        """Every sample so many times in a row, as beam search repeats prompts."""
        users, items = ([one for one in _as_list(ids) for _ in range(copies)] for ids in (self.user_ids, self.item_ids))
        tensors = self._of_tensors(lambda one: one.repeat_interleave(copies, 0))
        return self._replace(user_ids=users, item_ids=items, **tensors)

    def _of_tensors(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """What is there of each sample beside the ids, changed."""
        named = {name: getattr(self, name) for name in self._fields[2:]}
        return {name: change(one) for name, one in named.items() if one is not None}


def _as_list(ids: Ids) -> list[Any]:
    return ids.tolist() if isinstance(ids, Tensor) else list(ids)
