"""What the C library does with memory that is freed: a training asks for the same blocks again in every step."""

import ctypes
import os
import sys

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Has glibc keep what is freed for the next call, in this process and from now on; whether it did.

    By itself it gives large blocks back to the kernel, which hands them out again page by page, each set to zero first:
    some hundred thousand page faults in a training step on a CPU. The process then holds on to the most memory that it
    ever had. Nothing is changed where the C library is another one, or where MALLOC_TRIM_THRESHOLD_ or MALLOC_MMAP_MAX_
    are set in the environment: they say the same more particularly.
    """
    if not sys.platform.startswith("linux") or {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_"} & os.environ.keys():
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_M_TRIM_THRESHOLD, _NEVER)) and bool(library.mallopt(_M_MMAP_MAX, 0))
