"""Items ranked by the probabilities of their codes: the best of a beam, or all of them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cora.checks import check_choice
from cora.codes.trie import Trie

NORMALISE = ("level", "children")


class Step(NamedTuple):
    """What the codes of one level are asked for: `nodes` int64 [U, W], the nodes of the level before that each user
    is at, -1 for none; codes int64 [U, W], the last code of each; parents int64 [U, W], which of the nodes of the step
    before each continues. At the first level there is one node, the root, and codes and parents are zero."""

    level: int
    nodes: Tensor
    codes: Tensor
    parents: Tensor


# Step -> logits [U, W, size] of the codes of its level behind each node; what is said behind -1 is not read.
NextCodes = Callable[[Step], Tensor]


class Ranked(NamedTuple):
    """items int64 [U, W], the best first, -1 behind the last one found; scores [U, W], log-probabilities, -inf there.
    W is the width of the beam, or the number of items where that is less. Equal scores stand in the order of the
    items' codes."""

    items: Tensor
    scores: Tensor


@torch.no_grad()
def beam_search(
    trie: Trie,
    next_codes: NextCodes,
    users: int,
    width: int,
    normalise: str = "children",
    seen: Tensor | None = None,
) -> Ranked:
    """The `width` items of highest score by a beam: after each level the `width` best nodes of each user go on.

    score = sum over levels of log p(code | codes before), p a softmax over all codes that items have at that level
    ("level"), or over those that items have behind the node ("children"), by which the probabilities of all items sum
    to 1. Only nodes of the trie are ever continued, whatever the logits are, so what is found is an item. With a width
    of all items no node is left out, and all of them are ranked.

    seen: bool [U, items], items that a user is not to get. A node below which a user has seen all is left out; no
    probability changes by it, so the others keep their order.

    Raises ValueError for width < 1 and another `normalise`.
    """
    check_choice("normalise", normalise, NORMALISE)
    if width < 1:
        raise ValueError(f"width: expected at least 1, got {width}")
    width = min(width, trie.items)
    unseen = trie.leaves(seen)
    nodes = codes = parents = torch.zeros(users, 1, dtype=torch.int64)
    scores = torch.zeros(users, 1)
    for level in range(trie.levels):
        logits = next_codes(Step(level, nodes, codes, parents)).float().cpu()
        there = trie.children[level][nodes.clamp(min=0)].where(nodes[..., None] >= 0, -1)  # [U, W, size]
        total = scores[..., None] + _log_softmax(logits, there, trie, level, normalise)
        left = unseen[level].expand(users, -1).gather(1, there.clamp(min=0).flatten(1)).view_as(there)
        total = total.where((there >= 0) & (left > 0), -torch.inf).flatten(1)
        # Not topk, which breaks ties in no order: here the first code wins, so a beam is repeatable.
        best = total.sort(dim=1, descending=True, stable=True).indices[:, :width]
        scores = total.gather(1, best)
        parents, codes = best // trie.size, best % trie.size
        nodes = there.flatten(1).gather(1, best).where(scores > -torch.inf, -1)
    items = trie.item_of[nodes.clamp(min=0)].where(nodes >= 0, -1)
    return Ranked(items, scores)


@torch.no_grad()
def all_scores(trie: Trie, next_codes: NextCodes, users: int, normalise: str = "children") -> Tensor:
    """The score of every item, [U, items], by asking for the codes behind every node once. What `beam_search` is
    compared with: no node is sorted or left out."""
    check_choice("normalise", normalise, NORMALISE)
    total = torch.zeros(users, 1)
    codes = parents = torch.zeros(users, 1, dtype=torch.int64)
    for level in range(trie.levels):
        nodes = torch.arange(total.shape[1]).expand(users, -1)
        logits = next_codes(Step(level, nodes, codes, parents)).float().cpu()
        table = trie.children[level]
        logs = _log_softmax(logits, table.expand(users, -1, -1), trie, level, normalise)
        before, code = (table >= 0).nonzero(as_tuple=True)  # in the order of the children
        total = total[:, before] + logs[:, before, code]
        codes, parents = code.expand(users, -1), before.expand(users, -1)
    scores = torch.empty_like(total)
    scores[:, trie.item_of] = total
    return scores


def _log_softmax(logits: Tensor, there: Tensor, trie: Trie, level: int, normalise: str) -> Tensor:
    """Of logits [U, W, size] the log-probabilities, among the codes of the level or the children `there`.

    Behind a node that is none of the trie's there is no child: its row of -inf gives NaN, which nobody reads.
    """
    allowed = there >= 0 if normalise == "children" else (trie.children[level] >= 0).any(0)
    return logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
