"""Checks of arguments that more than one op takes."""

import torch
from torch import Tensor


def kind_of(value: object) -> str:
    """What an error says of a value that is no Tensor."""
    return "None" if value is None else f"a {type(value).__name__}"


def check_cu_seqlens(cu_seqlens: object, name: str, rows: Tensor) -> None:
    """Raises TypeError or ValueError unless it is an int32 tensor [B + 1] on the device of `rows`, the argument `name`,
    with a sample if there are rows. Its values are not read."""
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(f"cu_seqlens must be a Tensor, got {kind_of(cu_seqlens)}")
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"cu_seqlens must be int32, got {cu_seqlens.dtype}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens must be [B + 1], got shape {list(cu_seqlens.shape)}")
    if cu_seqlens.device != rows.device:
        raise ValueError(f"cu_seqlens must be on the device of {name}, {rows.device}, got {cu_seqlens.device}")
    if cu_seqlens.shape[0] == 1 and rows.shape[0] > 0:
        raise ValueError(f"cu_seqlens must end at the number of rows of {name}, {rows.shape[0]}, got [1], no samples")
