"""Errors about data: file, place and value in one line that stays short, whatever the data hold."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

_LONGEST = 300
_LONGEST_PATH = 100
_LONGEST_VALUE = 60


def problem(where: str | Path, text: str) -> ValueError:
    """`where: text`, in at most 300 characters; of a long path the end is kept."""
    line = " ".join(f"{shown_path(where) if isinstance(where, Path) else where}: {text}".splitlines())
    return ValueError(clipped(line.rstrip(), _LONGEST))


def shown_path(path: Path) -> str:
    text = str(path).encode(errors="replace").decode()
    return text if len(text) <= _LONGEST_PATH else "…" + text[1 - _LONGEST_PATH :]


def shown(value: Any) -> str:
    """The value as Python writes it, cut where it is long."""
    value = value.item() if isinstance(value, np.generic) else value
    return clipped(repr(value[: 2 * _LONGEST_VALUE] if isinstance(value, str) else value), _LONGEST_VALUE)


def listed(values: Iterable[Any]) -> str:
    """[...] of the values, as many as a line of an error holds."""
    texts: list[str] = []
    for value in values:
        texts.append(shown(value))
        if sum(map(len, texts)) > 2 * _LONGEST_VALUE:
            texts[-1] = "…"
            break
    return f"[{', '.join(texts)}]"


def clipped(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
