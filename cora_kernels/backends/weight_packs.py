"""Packed copies of frozen weights for the CPU kernels: kept for weights whose owner asks, of no others.

A call of lora_linear reads the weight's present elements, whoever wrote them, and packs them on the way: a few per cent
of a call of a thousand rows, and more than half of a call of one row. `keep_packed(weight)` spares its later calls
that. A kept weight has at most one pack for the forward and one, where dx is asked for, for the backward, for each
dtype of x; each is as large as the weight.

A pack is made again when its weight is seen to have changed: its version, memory or shape is another, or one of 64
elements spread over it. So every write that torch counts is seen; one that it does not count (through `.data`, NumPy,
shared memory) is seen where it changes most of the weight. After such a write to a few elements or rows of a kept
weight, call `refresh_packed`. Weights created under `torch.inference_mode()` count no versions: theirs are not kept.
"""

import threading
import weakref

from torch import Tensor

from cora_kernels.backends import extension

# The weights that are kept, by the number that the extension knows them by. The lock is taken again by a weight that
# dies meanwhile.
_kept: dict[int, weakref.ref[Tensor]] = {}
_lock = threading.RLock()


def keep_packed(weight: Tensor) -> None:
    """Keeps the packs of this tensor, or of its transpose, from call to call: until it dies, or is released as often
    as it was asked for.

    Only calls with this very tensor, or with a view of all of it, use them: it should be what the calls get.
    """
    if not extension.loaded:
        return
    with _lock:
        owner = extension._C.keep_packed(weight)

        # Bound here: the modules may be gone when the last weight dies.
        forget_packed, lock, kept = extension._C.forget_packed, _lock, _kept

        def forget(_: object) -> None:
            with lock:
                kept.pop(owner, None)
                forget_packed(owner)

        if owner not in _kept:
            _kept[owner] = weakref.ref(weight, forget)


def release_packed(weight: Tensor) -> None:
    """Takes one `keep_packed` back; the last one frees the packs. Does nothing for a weight that is not kept."""
    if not extension.loaded:
        return
    with _lock:
        owner = extension._C.release_packed(weight)
        if owner is not None:
            _kept.pop(owner, None)


def refresh_packed(weight: Tensor) -> None:
    """Has a kept weight read and packed again at its next call."""
    if extension.loaded:
        extension._C.refresh_packed(weight)


def clear_weight_packs() -> None:
    """Has all kept weights packed again at their next call, and frees what memory there is until then."""
    if extension.loaded:
        extension._C.clear_packs()


def weight_pack_bytes() -> int:
    """The memory that packs of living weights take."""
    return extension._C.packs_bytes() if extension.loaded else 0
