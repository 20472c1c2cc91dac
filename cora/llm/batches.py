"""What a call of the model is given: its checks, and what follows from the attention mask."""

from collections.abc import Hashable, Iterable, Sequence
from itertools import compress, islice
from typing import NamedTuple

import torch
from torch import Tensor


def check_prompts(input_ids: Tensor, attention_mask: Tensor) -> None:
    """Raises ValueError naming the argument that does not fit the other: prompts [B, T] padded on either side."""
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids: expected [B, T], got {list(input_ids.shape)}")
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask: expected the shape of input_ids {list(input_ids.shape)}, got {list(attention_mask.shape)}"
        )
    if not bool(attention_mask.any(1).all()):
        row = int((~attention_mask.any(1)).nonzero()[0])
        raise ValueError(f"attention_mask: row {row} is all zero, a prompt without tokens")
    if not bool(((attention_mask == 0) | (attention_mask == 1)).all()):
        raise ValueError("attention_mask: expected 0 and 1 only")


def check_labels(labels: Tensor, batch: int) -> None:
    """Raises ValueError unless the labels are 0 or 1, one for each of `batch` prompts."""
    if labels.shape != (batch,):
        raise ValueError(f"labels: expected [{batch}], one per row of input_ids, got {list(labels.shape)}")
    if not bool(((labels == 0) | (labels == 1)).all()):
        other = labels[(labels != 0) & (labels != 1)][0].item()
        raise ValueError(f"labels: expected 0 and 1 only, got {other}")


def check_prefix_lengths(prefix_lengths: Tensor, attention_mask: Tensor) -> None:
    """Raises TypeError or ValueError unless they are one whole number for each prompt, below its number of tokens."""
    batch = len(attention_mask)
    if prefix_lengths.dtype != torch.int64 or prefix_lengths.shape != (batch,):
        got = f"{prefix_lengths.dtype} {list(prefix_lengths.shape)}"
        raise TypeError(f"prefix_lengths: expected int64 [{batch}], one per row of input_ids, got {got}")
    lengths = attention_mask.sum(1)
    wrong = (prefix_lengths < 0) | (prefix_lengths >= lengths)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"prefix_lengths: expected less than the tokens of the prompt, got {int(prefix_lengths[row])} of "
            f"{int(lengths[row])} in row {row}"
        )


class Prompts(NamedTuple):
    """Tokens as the base model gets them, and where the answers are read.

    Packed: input_ids and position_ids [1, M], cu_seqlens int32 [S + 1]. Else input_ids [B, T], padded on the right.
    last: the last token of each prompt [B], as a row of the hidden states [B · T, h] or [M, h].

    Samples, each with deltas of its own, are the prompts; or, where those are split, prefixes and the rest of each.
    cu_seqlens then holds their boundaries in a padded batch too, in its tokens [B · T]. rows: the prompt of each
    sample, of a prefix the first that begins with it; is_prefix: bool [S]; parents: int32 [S], of packed prompts the
    prefix before each sample, -1 for none. None where prompts are whole.
    """

    input_ids: Tensor
    last: Tensor
    position_ids: Tensor | None = None
    cu_seqlens: Tensor | None = None
    rows: list[int] | None = None
    is_prefix: Tensor | None = None
    parents: Tensor | None = None

    @classmethod
    def packed(cls, input_ids: Tensor, attention_mask: Tensor) -> "Prompts":
        used = attention_mask.bool()
        lengths = used.sum(1)
        ends = lengths.cumsum(0)
        positions = torch.arange(int(ends[-1]), device=ends.device) - (ends - lengths).repeat_interleave(lengths)
        return cls(input_ids[used][None], ends - 1, positions[None], _boundaries(lengths))

    @classmethod
    def padded(cls, input_ids: Tensor, attention_mask: Tensor) -> "Prompts":
        """The tokens that are no padding first, in their order: no causal position sees the padding then, so attention
        needs no mask, and positions count from 0."""
        order = attention_mask.argsort(dim=1, descending=True, stable=True)
        batch, width = input_ids.shape
        starts = torch.arange(batch, device=order.device) * width
        return cls(input_ids.gather(1, order), starts + attention_mask.long().sum(1) - 1)

    @classmethod
    def packed_in_families(
        cls, input_ids: Tensor, attention_mask: Tensor, prefix_lengths: Tensor, families: list[list[int]]
    ) -> "Prompts":
        """Every prefix once and behind it the rest of each prompt of its family, whose positions go on from it.

        families: the rows of prompts that begin with the same tokens, `prefix_lengths` of them, and the same deltas.
        """
        lengths, prefixes = attention_mask.sum(1), prefix_lengths.tolist()
        rows: list[int] = []
        is_prefix: list[bool] = []
        parents: list[int] = []
        for family in families:
            parents += [-1] + [len(rows)] * len(family)
            rows += [family[0], *family]
            is_prefix += [True] + [False] * len(family)
        of, first = torch.tensor(rows), torch.tensor(is_prefix)
        before = torch.tensor([0 if one else prefixes[row] for row, one in zip(rows, is_prefix, strict=True)])
        sizes = torch.where(first, prefix_lengths.cpu()[of], lengths.cpu()[of] - before)
        ends = sizes.cumsum(0)
        positions = torch.arange(int(ends[-1])) - (ends - sizes - before).repeat_interleave(sizes)
        starts = lengths.cumsum(0) - lengths
        tokens = input_ids[attention_mask.bool()][positions.to(starts) + starts[of].repeat_interleave(sizes.to(starts))]
        last = torch.empty(len(lengths), dtype=torch.int64)
        last[of[~first]] = ends[~first] - 1
        device = input_ids.device
        return cls(
            tokens[None],
            last.to(device),
            positions[None].to(device),
            _boundaries(sizes).to(device),
            rows,
            first,
            torch.tensor(parents, dtype=torch.int32, device=device),
        )

    @classmethod
    def padded_in_two(cls, input_ids: Tensor, attention_mask: Tensor, prefix_lengths: Tensor) -> "Prompts":
        """As `padded`, each prompt two samples, the second with the padding."""
        batch, width = input_ids.shape
        sizes = torch.stack([prefix_lengths, width - prefix_lengths], 1).flatten()
        return cls.padded(input_ids, attention_mask)._replace(
            cu_seqlens=_boundaries(sizes),
            rows=[row for row in range(batch) for _ in range(2)],
            is_prefix=torch.tensor([True, False]).repeat(batch),
        )


def _boundaries(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).int()


def families_of(
    input_ids: Tensor, attention_mask: Tensor, prefix_lengths: Tensor, owners: Sequence[Hashable] | None
) -> list[list[int]]:
    """The rows of the prompts that begin alike and have one owner, in the order of the first of each family."""
    families: dict[Hashable, list[int]] = {}
    used = zip(input_ids.tolist(), attention_mask.tolist(), prefix_lengths.tolist(), strict=True)
    for row, (tokens, mask, length) in enumerate(used):
        prefix = tuple(islice(compress(tokens, mask), length))
        families.setdefault((prefix, None if owners is None else owners[row]), []).append(row)
    return list(families.values())


def token_batches(
    families: Iterable[Sequence[int]], prefix: Sequence[int], lengths: Sequence[int], most: int
) -> list[list[int]]:
    """The rows of families of prompts, in this order, in batches of at most `most` tokens, though one prompt at least.

    Of a batch's prompts of one family the first costs its whole length, the others only what is behind the prefix.
    """
    batches: list[list[int]] = []
    room = 0
    for family in families:
        joins = False  # the family's prefix is in the last batch
        for row in family:
            cost = lengths[row] - prefix[row] if joins else lengths[row]
            if cost > room:
                batches.append([])
                room, cost = most, lengths[row]
            batches[-1].append(row)
            room -= cost
            joins = True
    return batches
