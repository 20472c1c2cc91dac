"""Eval mode for a while, for any number of threads at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class EvalMode:
    """Inside `of(module)` the module and all below it are in eval mode; when the last thread has left, in their own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._training: list[nn.Module] = []

    @contextmanager
    def of(self, module: nn.Module) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._training = [one for one in module.modules() if one.training]
                module.eval()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    for one in self._training:
                        one.training = True
                    self._training = []

    def __reduce__(self) -> tuple[Any, ...]:
        return EvalMode, ()
