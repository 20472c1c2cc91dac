"""Several processes at one run, as `torchrun` and `accelerate launch` start them: who speaks, who does which rows.

Everything here does nothing but its work where there is one process.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import TypeVar

import numpy as np
import torch

Value = TypeVar("Value")


def process_index() -> int:
    """The number of this process, as its launcher says it; 0 where there is none."""
    return int(os.environ.get("RANK", 0))


def process_count() -> int:
    """How many processes the launcher started; 1 where there is none."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return process_index() == 0


@contextmanager
def one_speaks() -> Iterator[None]:
    """Within it nothing is printed and nobody is warned but by the main process."""
    with ExitStack() as stack:
        if not is_main():
            nothing = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nothing))
            stack.enter_context(redirect_stderr(nothing))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        yield


def join_processes() -> None:
    """Makes this process known to the others, if that has not been done: gloo on a CPU, NCCL on GPUs of their own."""
    if process_count() > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if process_count() > 1:
        from accelerate.utils import wait_for_everyone

        wait_for_everyone()


def of_main(value: Value) -> Value:
    """The main process's value, in every process."""
    if process_count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def own_share(rows: int) -> range:
    """The rows that this process does: as many as each other does, to one, one behind the other."""
    borders = [rows * index // process_count() for index in (process_index(), process_index() + 1)]
    return range(*borders)


def gathered(own: np.ndarray) -> np.ndarray:
    """The arrays of all processes, one behind the other, in every process."""
    if process_count() == 1:
        return own
    from accelerate.utils import gather_object

    return np.concatenate(gather_object([own]))
