"""Frozen weights with room behind their columns: one buffer [W | P] of [N, K + p], whose GEMM adds S·P to x·Wᵀ.

Whoever owns a weight asks: `make_room` moves its elements into such a buffer, of which it is a view from then on, the
same Parameter with the same values. What is in the room belongs to the call that runs: each writes its P there before
it multiplies, under a lock. Nothing that autograd saved is ever written: that is W, never the room behind it.
"""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class _Room:
    """owner: the weight, as it is stored. shape, strides: those of it as [N, K]. lock: of the call that uses the room.
    used: the columns that the last one wrote. stream: the CUDA stream that it ran on."""

    owner: weakref.ref[Tensor]
    shape: torch.Size
    strides: tuple[int, ...]
    columns: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    used: int = 0
    stream: Any = None


# By the address of the first element.
_rooms: dict[int, _Room] = {}
_lock = threading.RLock()


def padded(rank: int) -> int:
    """The columns of P, those of zeros behind it included: whole steps of a product's main loop."""
    return -(-rank // 64) * 64


def make_room(weight: Tensor, rank: int, transposed: bool = False) -> None:
    """Moves a weight, [N, K] or, `transposed`, stored as [K, N], to where `rank` columns of P fit behind its own.

    It takes (K + p) / K times the memory, p the rank up to a multiple of 64. Does nothing where there is room already,
    nor for weights made in inference mode. Until `give_up_room` a weight stored as [N, K] is not contiguous.
    """
    # Whatever mode the call comes in: the weight stays one that autograd can save.
    with _lock, torch.inference_mode(False), torch.no_grad():
        if weight.numel() == 0 or weight.is_inference() or room_of(weight) >= rank:
            return
        give_up_room(weight)
        columns = padded(rank)
        inputs = weight.shape[0 if transposed else 1]
        sizes = (inputs + columns, weight.shape[1]) if transposed else (weight.shape[0], inputs + columns)
        wide = weight.new_zeros(sizes)
        moved = wide[:inputs] if transposed else wide[:, :inputs]
        moved.copy_(weight)
        weight.data = moved
        matrix = moved.t() if transposed else moved
        address = weight.data_ptr()

        def forget(owner: weakref.ref[Tensor]) -> None:
            with _lock:
                if address in _rooms and _rooms[address].owner is owner:
                    del _rooms[address]

        owner = weakref.ref(weight, forget)
        _rooms[address] = _Room(owner, matrix.shape, matrix.stride(), columns)


def give_up_room(weight: Tensor) -> None:
    """Moves a weight out again, contiguous, with the values that it has now. Nothing where there is no room."""
    with _lock, torch.inference_mode(False), torch.no_grad():
        if room_of(weight):
            del _rooms[weight.data_ptr()]
            weight.data = weight.detach().clone(memory_format=torch.contiguous_format)


def room_of(weight: Tensor) -> int:
    """How many columns of P fit behind a weight, or behind its transpose: 0 where nobody made room, or it has moved."""
    room = _find(weight)
    return 0 if room is None else room.columns


@contextmanager
def beside(weight: Tensor, factor: Tensor) -> Iterator[Tensor]:
    """[W | factorᵀ | 0], [N, K + p] in the dtype of the weight [N, K], for as long as the context lasts.

    factor: [r, N]; p: `padded(r)`. Where there is no room, a copy of the weight is made with some: right, and slow.
    """
    rank, (outputs, inputs) = factor.shape[0], weight.shape
    columns, room = padded(rank), _find(weight)
    if room is None or room.columns < rank or room.strides != weight.stride():
        yield torch.cat([weight, factor.t().to(weight.dtype), weight.new_zeros(outputs, columns - rank)], dim=1)
        return
    with room.lock:
        if weight.is_cuda:
            _wait_for_the_last_stream(room, weight.device)
        # `data` has a version of its own: the weight, which autograd may have saved, is not written.
        wide = weight.data.as_strided((outputs, inputs + columns), room.strides)
        wide[:, inputs : inputs + rank].copy_(factor.t())
        if rank < room.used:  # S is zero there, but what a P of more columns left may be inf.
            weight.data.as_strided((outputs, inputs + room.used), room.strides)[:, inputs + rank :].zero_()
        room.used = rank
        yield wide


def _wait_for_the_last_stream(room: _Room, device: torch.device) -> None:
    """Threads that run the model on streams of their own write P into one room: each after the product of the last."""
    stream = torch.cuda.current_stream(device)
    # A capture cannot wait for what runs outside of it, nor does it run anything now.
    if room.stream not in (None, stream) and not torch.cuda.is_current_stream_capturing():
        stream.wait_stream(room.stream)
    room.stream = stream


def _find(weight: Tensor) -> _Room | None:
    """The room behind this weight or its transpose, if its owner still lies there."""
    # Tensors of other kinds, sharded or quantised, need not have an address.
    known = _rooms and type(weight) in (Tensor, nn.Parameter)
    room = _rooms.get(weight.data_ptr()) if known else None
    owner = None if room is None else room.owner()
    if room is None or owner is None or owner.data_ptr() != weight.data_ptr():
        return None
    seen = {(room.shape, room.strides), (room.shape[::-1], room.strides[::-1])}
    return room if (weight.shape, weight.stride()) in seen else None
