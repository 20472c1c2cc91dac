"""Files of tensors that anybody may have made: what is in them is checked before anything is allocated."""

import json
import os
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# The largest JSON that is read, of a file of any size: the header of 100,000 tensors, or a configuration.
_JSON = 16 * 2**20
_DIMENSIONS = 8
_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U64": 8, "U32": 4, "U16": 2,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
# The operators that make a tensor of a size, which is their first argument or follows the tensor it is like.
_MAKERS = ("empty", "empty_strided", "zeros", "ones", "full", "rand", "randn", "new_empty", "new_zeros", "new_full")


class Described(NamedTuple):
    """What a file says of a tensor: its dtype as safetensors names it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def described(path: Path) -> dict[str, Described]:
    """The tensors in a safetensors file by name, from its header alone: nothing else of it is read.

    Raises FileNotFoundError if there is none, ValueError naming the file if it is no safetensors file, is cut off, is
    not as long as its tensors, or longer than the machine's memory.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _JSON):
            raise ValueError(f"{path}: not a safetensors file, or cut off: {size} bytes, a header of {length}")
        # A file with holes is as long as its maker likes.
        if size > _memory():
            raise ValueError(f"{path}: {size:,} bytes, this machine has a memory of {_memory():,}")
        header = file.read(length)
    try:
        values = json.loads(header)
        values.pop("__metadata__", None)
        tensors = {name: Described(one["dtype"], tuple(one["shape"])) for name, one in values.items()}
        ends = [_end(tensors[name], one["data_offsets"]) for name, one in values.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a safetensors file ({str(error)[:100]})") from None
    if max(ends, default=0) != size - 8 - length:
        raise ValueError(
            f"{path}: its tensors need {max(ends, default=0):,} bytes, the file has {size - 8 - length:,} for them"
        )
    return tensors


def read_tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The tensors of those names, or all, of a safetensors file. Raises as `described` does."""
    wanted = list(described(path)) if names is None else list(names)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in wanted}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({str(error)[:100]})") from None


class Budget(TorchDispatchMode):
    """Inside, tensors of so many elements in all may be made: for a model that is built as a file's settings say.

    Raises ValueError, with `what` in front, before the first is made that is too large or one too many.
    """

    def __init__(self, what: str, elements: int) -> None:
        super().__init__()
        self._what = what
        self._elements = self._left = elements

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in _MAKERS:
            sizes = next((one for one in args if isinstance(one, list | tuple)), ())
            self._left -= prod(int(size) for size in sizes)
            if self._left < 0:
                raise ValueError(f"{self._what}: more than {self._elements:,} values")
        return func(*args, **(kwargs or {}))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of at most 16 MiB. Raises FileNotFoundError, and ValueError for anything else."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if (size := path.stat().st_size) > _JSON:
        raise ValueError(f"{path}: {size:,} bytes, expected a JSON object of at most {_JSON:,}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({str(error)[:100]})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def misfit(saved: Mapping[str, Described], expected: Mapping[str, Tensor]) -> str | None:
    """How the tensors of a file differ in name, shape and kind from those expected, None if they do not."""
    differences = {"missing": expected.keys() - saved.keys(), "unexpected": saved.keys() - expected.keys()}
    if any(differences.values()):
        return "; ".join(
            f"{len(names)} tensors {what}, for example {min(names)}" for what, names in differences.items() if names
        )
    wrong = sorted(name for name in expected if saved[name].shape != tuple(expected[name].shape))
    if wrong:
        name = wrong[0]
        shapes = list(saved[name].shape), list(expected[name].shape)
        return f"{len(wrong)} tensors of other shapes: {name} is {shapes[0]}, needed {shapes[1]}"
    whole = sorted(name for name in expected if expected[name].is_floating_point() and saved[name].dtype not in FLOATS)
    return f"{len(whole)} tensors that are not float: {whole[0]} is {saved[whole[0]].dtype}" if whole else None


def packed_ids(ids: list[Any]) -> Tensor:
    """Ids as a file of tensors holds them: int64 [n], or of text uint8 [n, bytes] of UTF-8 with zeros behind it.

    Raises ValueError for text that holds a zero byte.
    """
    if not isinstance(ids[0], str):
        return torch.tensor(ids, dtype=torch.int64)
    encoded = [str(one).encode() for one in ids]
    if any(b"\0" in one for one in encoded):
        raise ValueError("ids that hold a zero byte cannot be saved")
    width = max(1, *(len(one) for one in encoded))
    return torch.frombuffer(bytearray(b"".join(one.ljust(width, b"\0") for one in encoded)), dtype=torch.uint8).view(
        len(ids), width
    )


def unpacked_ids(name: str, ids: Tensor) -> Tensor | list[str]:
    """What `packed_ids` packed. Raises ValueError, naming the tensor, for another dtype or shape, and for bytes that
    are no UTF-8."""
    if ids.dtype == torch.int64 and ids.dim() == 1:
        return ids
    if ids.dtype == torch.uint8 and ids.dim() == 2:
        return [bytes(row).rstrip(b"\0").decode() for row in ids.tolist()]
    raise ValueError(
        f"{name}: expected int64 [n], or uint8 [n, bytes] of UTF-8 text, got {ids.dtype} {list(ids.shape)}"
    )


def _memory() -> float:
    """Bytes of the machine's memory, where it says."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else float("inf")


def _end(tensor: Described, offsets: list[int]) -> int:
    """Where a tensor ends in the file. Raises ValueError if it is not as long there as its shape says."""
    start, end = offsets
    if tensor.dtype not in _BYTES:
        raise ValueError(f"dtype {tensor.dtype!r}")
    if len(tensor.shape) > _DIMENSIONS or any(type(length) is not int or length < 0 for length in tensor.shape):
        raise ValueError(f"shape {list(tensor.shape)[:_DIMENSIONS]}")
    length = prod(tensor.shape) * _BYTES[tensor.dtype]
    if type(start) is not int or type(end) is not int or start < 0 or end - start != length:
        raise ValueError(f"{tensor.dtype} {list(tensor.shape)} at {start} to {end}")
    return end
