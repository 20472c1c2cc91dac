"""What belongs to one forward of a patched model, and how every forward, a recomputed one too, finds its own."""

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from cora.llm.deltas import Delta


@dataclass(frozen=True)
class Call:
    """deltas: those of the linears that have one, by name. cu_seqlens: where samples lie, if they may come packed, or
    `within` the rows of a padded batch, whose tokens [B · T] it counts.

    answers: [B], the row of the hidden states, as [B · T, h], that each sample's answer follows; None for all rows.
    readout: [h] or [B, h], what each answer is read by, in place of the head's own rows; None for those.
    backward: the run of the backward in which it was set, -1 outside.
    """

    deltas: Mapping[str, Delta]
    cu_seqlens: Tensor | None = None
    within: bool = False
    answers: Tensor | None = None
    readout: Tensor | None = None
    backward: int = -1


class Calls:
    """The Call of every forward of one patched model.

    A forward reads what its own thread set last, or, in a thread that has set nothing, what the thread that made the
    patch did. A recomputation by activation checkpointing runs in the backward, in
    whichever thread and after whatever else was set since: it reads the Call of the forward that it repeats. So that it
    can, every patched linear leaves its Call with the node of its output in the graph (`mark`); a recomputation is
    asked for by a node of the forward that it repeats, and the nearest mark below that node is of that forward.

    A copy has the Call that the copying thread had set, and from then on its own.
    """

    def __init__(self, call: Call | None = None) -> None:
        self._shared = call
        self._thread = _Thread()
        self._thread.shares = True

    def set(self, call: Call) -> None:
        """From now on the Call of this thread's forwards."""
        self._thread.call = call
        if self._thread.shares:
            self._shared = call

    def current(self) -> Call | None:
        """The Call of the forward that runs; None where nobody has set one for it.

        Raises RuntimeError in a recomputation whose forward left no mark: reentrant checkpointing builds no graph.
        """
        mine = self._thread.call or self._shared
        if torch.compiler.is_compiling():
            return mine
        backward = torch._C._current_graph_task_id()
        if backward == -1 or (mine is not None and mine.backward == backward):
            return mine
        return self._of_the_recomputed_forward()

    def mark(self, y: Tensor, call: Call) -> Tensor:
        """y, its node marked with the Call that it was computed by."""
        if not torch.compiler.is_compiling() and y.grad_fn is not None:
            cast("dict[Any, Any]", y.grad_fn.metadata)[self] = call
        return y

    def _of_the_recomputed_forward(self) -> Call:
        asking = torch._C._current_autograd_node()
        nodes, seen = deque([asking]), {asking}
        while nodes:
            node: Any = nodes.popleft()
            call: Call | None = node.metadata.get(self)
            if call is not None:
                return call
            below = [one for one, _ in node.next_functions if one is not None and one not in seen]
            nodes.extend(below)
            seen.update(below)
        raise RuntimeError(
            "deltas: this recomputation cannot tell which deltas its forward had, as that left no graph; activation "
            "checkpointing needs use_reentrant=False, and deltas or an input that require a gradient"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Calls":
        return Calls(self._thread.call or self._shared)

    def __reduce__(self) -> tuple[Any, ...]:
        return Calls, ()


class _Thread(threading.local):
    """The Call set in this thread, and whether it is this thread's that the others share."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.shares = False
