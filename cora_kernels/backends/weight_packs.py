"""The packed copies of frozen weights that the CPU kernels read: kept or not, freed, counted.

A weight is packed for the micro-kernels the first time it is met: once for the forward and once, where dx is asked for,
for the backward. Each pack is as large as its weight and lives until the weight dies or changes, or until
`weight_packing(False)` or `clear_weight_packs()`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from cora_kernels.backends import extension


@contextmanager
def weight_packing(enabled: bool) -> Iterator[None]:
    """Inside, packed weights are kept from call to call (the default), or each call packs its own and frees it.

    Not keeping them saves one to two times the memory of the adapted weights and costs N·K element copies a call, a few
    per cent at a thousand rows. The switch is the process's: it holds in all threads, and a backward obeys the setting
    of the moment it runs. Weights created under `torch.inference_mode()` are never kept, they do not count versions.
    """
    before = extension._C.keep_packs(enabled) if extension.loaded else enabled
    try:
        yield
    finally:
        if extension.loaded:
            extension._C.keep_packs(before)


def clear_weight_packs() -> None:
    """Frees every pack. Also the way to have weights read again after a few elements were written through `.data`."""
    if extension.loaded:
        extension._C.clear_packs()


def weight_pack_bytes() -> int:
    """The memory that packs of living weights take."""
    return extension._C.packs_bytes() if extension.loaded else 0
