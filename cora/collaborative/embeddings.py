"""User and item vectors from any collaborative filtering model, with the ids they belong to."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cora.files import write_files
from cora.tensors import described, packed_ids, read_tensors, unpacked_ids

Ids = Tensor | Sequence[int] | Sequence[str]
_TENSORS = ("user_ids", "item_ids", "users", "items")
_GUESSES = ("guessed_item_ids", "guessed_items", "guessed_from_text")
_ENCODER = "user_encoder"  # in a file a tensor with its name, and before the names of its weights


class ItemGuesses:
    """What stands for items that have no vector: item_ids n ids, vectors [n, d], and from_text [h + 1, d] that makes
    them of vectors of texts [h], the last row added. See `guessed_items`."""

    def __init__(self, item_ids: Ids, vectors: Tensor, from_text: Tensor) -> None:
        self.vectors = _checked("guessed_items", vectors)
        self.from_text = _checked("guessed_from_text", from_text)
        if vectors.shape[1] != from_text.shape[1]:
            raise ValueError(f"guesses must have one width, got {vectors.shape[1]} and {from_text.shape[1]}")
        self.rows = _Rows("guessed_item", item_ids, len(vectors))

    @staticmethod
    def of_texts(from_text: Tensor, texts: Tensor) -> Tensor:
        """[n, d] of texts [n, h]."""
        return (texts.double() @ from_text[:-1].double() + from_text[-1].double()).to(from_text.dtype)

    def beside(self, item_ids: Ids, texts: Tensor) -> "ItemGuesses":
        """These and those of further items, by the vectors of their texts [n, h]."""
        more = self.of_texts(self.from_text, texts)
        return ItemGuesses([*self.rows.ids, *item_ids], torch.cat([self.vectors, more]), self.from_text)


class CollaborativeEmbeddings:
    """e_u = users[row of u], e_i = items[row of i]; an id without a row has the mean of all rows.

    user_ids, item_ids: integers (int64 tensor or list) or str, unique; users: [U, d], items: [I, d], float, on the CPU.
    Row U of users (I of items) stands for the mean: `lookup_users` and `lookup_items` give it for unknown ids,
    `user_table` and `item_table` hold it.
    user_encoder: the name in `USER_ENCODERS` of what makes a user's vector from their past, and encoder_tensors its
    weights by name; None for vectors of which that is not known.
    guesses: of items without a vector, what a method is told in place of the mean; `vectors` and `score`, what is known
    without any text, give the mean all the same.

    Raises ValueError for duplicate or missing ids, shapes that do not fit, no rows, and values that are not finite;
    TypeError for ids that are neither all integers nor all str, and for matrices that are not float.
    """

    def __init__(
        self,
        user_ids: Ids,
        item_ids: Ids,
        users: Tensor,
        items: Tensor,
        user_encoder: str | None = None,
        encoder_tensors: Mapping[str, Tensor] | None = None,
        guesses: ItemGuesses | None = None,
    ) -> None:
        self.users = _checked("users", users)
        self.items = _checked("items", items)
        if users.shape[1] != items.shape[1]:
            raise ValueError(f"users and items must have one width, got {users.shape[1]} and {items.shape[1]}")
        self._user_rows = _Rows("user", user_ids, len(users))
        self._item_rows = _Rows("item", item_ids, len(items))
        self.user_encoder = user_encoder
        self.encoder_tensors = {name: one.detach().cpu() for name, one in (encoder_tensors or {}).items()}
        if guesses is not None and guesses.vectors.shape[1] != items.shape[1]:
            raise ValueError(f"guesses must be as wide as items, {items.shape[1]}, got {guesses.vectors.shape[1]}")
        self.guesses = guesses

    @property
    def user_ids(self) -> list[Any]:
        """The id of each row of `users`."""
        return self._user_rows.ids

    @property
    def item_ids(self) -> list[Any]:
        """The id of each row of `items`."""
        return self._item_rows.ids

    @property
    def user_table(self) -> Tensor:
        """`users` and, in the row after the last, their mean: [U + 1, d], what `lookup_users` gives rows of."""
        return with_mean(self.users)

    @property
    def item_table(self) -> Tensor:
        """`items` and, in the row after the last, their mean: [I + 1, d], what `lookup_items` gives rows of."""
        return with_mean(self.items)

    def lookup_users(self, ids: Ids) -> Tensor:
        """int64 [n]: the row of each id, U for those unknown, which are warned of, each id once.

        Raises TypeError for str where the embeddings have integers, and the other way round.
        """
        return self._user_rows.lookup(ids)

    def lookup_items(self, ids: Ids) -> Tensor:
        """int64 [n]: the row of each id, I for those unknown, which are warned of, each id once.

        Raises TypeError for str where the embeddings have integers, and the other way round.
        """
        return self._item_rows.lookup(ids)

    def has_items(self, ids: Ids) -> Tensor:
        """bool [n]: which ids have a row, the others warned of as by `lookup_items`."""
        return self.lookup_items(ids) < len(self.items)

    def guessed(self, ids: Ids) -> Tensor:
        """[n, d]: what stands for items taken for unknown: their guesses, the mean of those without one."""
        mean = self.items.mean(0)
        if self.guesses is None:
            return mean.expand(len(ids), -1)
        rows, vectors = self.guesses.rows, self.guesses.vectors
        rows.unknown(ids)  # The guess of an item nobody knows is the mean, which is warned of already.
        found = rows.lookup(ids)
        return torch.where((found < len(vectors))[:, None], vectors[found.clamp(max=len(vectors) - 1)], mean)

    def with_guesses(self, guesses: ItemGuesses | None) -> "CollaborativeEmbeddings":
        """The same with these guesses, or with none."""
        return CollaborativeEmbeddings(
            self.user_ids, self.item_ids, self.users, self.items, self.user_encoder, self.encoder_tensors, guesses
        )

    def report_unknown(self, what: str, user_ids: Ids, item_ids: Ids, others: Ids = ()) -> None:
        """Warns, in one line, of how many of n pairs have an unknown user or item. what: whose pairs they are.

        The ids, and `others` of items that are looked up with them, are then known to be unknown: no lookup warns of
        them again. Raises TypeError as the lookups do.
        """
        users, items = self._user_rows.unknown(user_ids), self._item_rows.unknown(item_ids)
        self._item_rows.unknown(others)
        if any(users) or any(items):
            shares = [f"{sum(one)} of {len(one)} rows ({sum(one) / len(one):.1%})" for one in (users, items)]
            warnings.warn(
                f"{what}: unknown user ids get the mean embedding in {shares[0]}, unknown item ids in {shares[1]}",
                stacklevel=2,
            )

    def vectors(
        self, user_ids: Ids, item_ids: Ids, user_vectors: Tensor | None = None, item_vectors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """e_u [n, d] and e_i [n, d] of n pairs: those given, and of the tables what is not."""
        if user_vectors is None:
            user_vectors = self.user_table[self.lookup_users(user_ids)]
        if item_vectors is None:
            item_vectors = self.item_table[self.lookup_items(item_ids)]
        return user_vectors, item_vectors

    def score(
        self, user_ids: Ids, item_ids: Ids, user_vectors: Tensor | None = None, item_vectors: Tensor | None = None
    ) -> Tensor:
        """<e_u, e_i> [n] of n pairs in the tables' dtype, what matrix factorisation ranks by. user_vectors [n, d],
        item_vectors [n, d]: the e_u and the e_i, in place of the tables'."""
        e_u, e_i = self.vectors(user_ids, item_ids, user_vectors, item_vectors)
        return (e_u * e_i).sum(1)

    def of_items(self, rows: Tensor) -> "CollaborativeEmbeddings":
        """The same with these rows of the items alone, int64 [n]."""
        items = [self.item_ids[row] for row in rows.tolist()]
        return CollaborativeEmbeddings(
            self.user_ids, items, self.users, self.items[rows], self.user_encoder, self.encoder_tensors, self.guesses
        )

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file: users [U, d], items [I, d], user_ids and item_ids (int64 [n], or uint8 [n, bytes]
        of UTF-8 text with zeros behind it); in user_encoder, as such text, the encoder's name, its weights
        as user_encoder.NAME; of guesses guessed_item_ids, guessed_items [n, d] and guessed_from_text
        [h + 1, d]. The file appears whole or not at all."""
        tensors = {f"{_ENCODER}.{name}": one.contiguous() for name, one in self.encoder_tensors.items()} | {
            "user_ids": packed_ids(self.user_ids),
            "item_ids": packed_ids(self.item_ids),
            "users": self.users.contiguous(),
            "items": self.items.contiguous(),
        }
        if self.user_encoder is not None:
            tensors[_ENCODER] = packed_ids([self.user_encoder])
        if (guesses := self.guesses) is not None:
            made = packed_ids(guesses.rows.ids), guesses.vectors.contiguous(), guesses.from_text.contiguous()
            tensors |= dict(zip(_GUESSES, made, strict=True))
        path = Path(path)
        write_files(path.parent, {path.name: lambda file: save_file(tensors, file)})

    @classmethod
    def load(cls, path: str | Path) -> "CollaborativeEmbeddings":
        """Reads a file as `save` writes it, made by whatever program.

        Raises FileNotFoundError if there is none; ValueError, naming the file, if it holds anything else.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no file of collaborative embeddings there")
        found = described(path)
        if missing := [name for name in _TENSORS if name not in found]:
            raise ValueError(f"{path}: missing tensor {', '.join(missing)}; found {sorted(found)[:5]}")
        weights = {name.removeprefix(f"{_ENCODER}."): name for name in found if name.startswith(f"{_ENCODER}.")}
        named = [_ENCODER] if _ENCODER in found else []
        guessed = _GUESSES if all(name in found for name in _GUESSES) else ()
        tensors = read_tensors(path, [*_TENSORS, *named, *weights.values(), *guessed])
        try:
            user_ids, item_ids = (unpacked_ids(name, tensors[name]) for name in _TENSORS[:2])
            encoder = str(unpacked_ids(_ENCODER, tensors[_ENCODER])[0]) if named else None
            weights_of = {name: tensors[place] for name, place in weights.items()}
            guesses = None
            if guessed:
                ids, *made = (tensors[name] for name in _GUESSES)
                guesses = ItemGuesses(unpacked_ids(_GUESSES[0], ids), *made)
            return cls(user_ids, item_ids, tensors["users"], tensors["items"], encoder, weights_of, guesses)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error


class _Rows:
    """Which row belongs to which id."""

    def __init__(self, kind: str, ids: Ids, rows: int) -> None:
        self.kind = kind
        self.ids, self._is_text = _as_list(f"{kind}_ids", ids)
        if len(self.ids) != rows:
            raise ValueError(f"{kind}_ids: expected {rows}, one for each row of {kind}s, got {len(self.ids)}")
        self._row = {one: row for row, one in enumerate(self.ids)}
        if len(self._row) != rows:
            repeated = [one for row, one in enumerate(self.ids) if self._row[one] != row]
            raise ValueError(f"{kind}_ids: must be unique, {len(repeated)} repeated, for example {repeated[:3]}")
        self._reported: set[int | str] = set()

    def unknown(self, ids: Ids) -> list[bool]:
        """Of each id whether it has no row; `lookup` warns of none of them from now on."""
        wanted = self._checked(ids)
        self._reported.update(one for one in wanted if one not in self._row)
        return [one not in self._row for one in wanted]

    def lookup(self, ids: Ids) -> Tensor:
        wanted = self._checked(ids)
        rows = [self._row.get(one, len(self.ids)) for one in wanted]
        new = [one for one in dict.fromkeys(wanted) if one not in self._row and one not in self._reported]
        if new:
            self._reported.update(new)
            warnings.warn(
                f"{len(new)} unknown {self.kind} ids get the mean embedding, for example {new[:5]}", stacklevel=3
            )
        return torch.tensor(rows, dtype=torch.int64)

    def _checked(self, ids: Ids) -> list[Any]:
        wanted, is_text = _as_list(f"{self.kind}_ids", ids)
        if wanted and is_text != self._is_text:
            expected, got = ("str", "integers") if self._is_text else ("integers", "str")
            raise TypeError(f"{self.kind}_ids: the embeddings have {expected}, got {got} such as {wanted[0]!r}")
        return wanted


def _as_list(name: str, ids: Ids) -> tuple[list, bool]:
    """The ids as Python int or str, and whether they are str."""
    if isinstance(ids, Tensor) and (ids.dim() != 1 or ids.is_floating_point()):
        raise TypeError(f"{name}: expected an integer tensor [n], got {ids.dtype} {list(ids.shape)}")
    listed = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    is_text = all(isinstance(one, str) for one in listed)
    if not is_text and not all(isinstance(one, int) for one in listed):
        odd = next((one for one in listed if not isinstance(one, int)), None)
        raise TypeError(f"{name}: expected all integers or all str, got {type(odd).__name__} {odd!r} among others")
    return listed, is_text and bool(listed)


def _checked(name: str, matrix: Tensor) -> Tensor:
    if not matrix.is_floating_point():
        raise TypeError(f"{name}: expected a float matrix, got {matrix.dtype}")
    if matrix.dim() != 2 or 0 in matrix.shape:
        raise ValueError(f"{name}: expected [rows, d] with at least one row, got {list(matrix.shape)}")
    bad = int((~matrix.isfinite()).any(1).sum())
    if bad:
        raise ValueError(f"{name}: {bad} of {len(matrix)} rows hold values that are not finite")
    return matrix.detach().cpu()


def with_mean(table: Tensor) -> Tensor:
    """The table and, in the row after the last, its mean."""
    return torch.cat([table, table.mean(0, keepdim=True)])
