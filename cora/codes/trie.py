"""Trie: which codes can follow which, and which items lie below."""

import torch
from torch import Tensor

# Entries of a table of children, 2 GiB of them.
_LARGEST = 2**28


class Trie:
    """The items' codes as a tree: a node of level l is a beginning of l + 1 codes that some item has.

    codes: int64 [n, L], unique, from 0 up to, not including, `size`. Nodes of a level are counted from 0 in the order
    of their codes. children[l]: int64 [nodes of level l - 1, size], the node of level l behind each node (behind the
    one root for l = 0) by each code, -1 where no item has it. node_of[l]: int64 [n], the node of level l that each item
    lies below. item_of: int64 [n], the item of each node of the last level.

    Raises ValueError for codes out of range, for more than 2^28 children in a table and, naming two of them, for items
    that share all their codes.
    """

    def __init__(self, codes: Tensor, size: int) -> None:
        items, levels = codes.shape
        if items == 0 or levels == 0 or int(codes.min()) < 0 or int(codes.max()) >= size:
            got = f"{list(codes.shape)}" if 0 in codes.shape else f"{int(codes.min())} to {int(codes.max())}"
            raise ValueError(f"codes: expected [items, levels] of numbers from 0 to {size - 1}, got {got}")
        if items * size > _LARGEST:
            raise ValueError(f"codes: {items} items and {size} codes a level make {items * size:,} places for children")
        self.levels, self.size, self.items = levels, size, items
        self.children: list[Tensor] = []
        self.node_of: list[Tensor] = []
        before, nodes = torch.zeros(items, dtype=torch.int64), 1
        for level in range(levels):
            keys, node = torch.unique(before * size + codes[:, level], return_inverse=True)
            table = torch.full((nodes * size,), -1, dtype=torch.int64)
            table[keys] = torch.arange(len(keys))
            self.children.append(table.view(nodes, size))
            self.node_of.append(node)
            before, nodes = node, len(keys)
        if nodes != items:
            order = before.argsort(stable=True)
            twice = int((before[order].diff() == 0).nonzero()[0])
            rows = order[twice : twice + 2].tolist()
            raise ValueError(f"codes: must be unique, items {rows[0]} and {rows[1]} share {codes[rows[0]].tolist()}")
        self.item_of = before.argsort()

    def leaves(self, seen: Tensor | None = None) -> list[Tensor]:
        """Of each level, how many items lie below each node, int64 [1, nodes]; or, by users, without those they have
        seen, int64 [U, nodes]. seen: bool [U, n]."""
        counted = torch.ones(1, self.items, dtype=torch.int64) if seen is None else (~seen).long()
        found = []
        for level, node in enumerate(self.node_of):
            nodes = self.items if level == self.levels - 1 else len(self.children[level + 1])
            found.append(counted.new_zeros(len(counted), nodes).index_add_(1, node, counted))
        return found
