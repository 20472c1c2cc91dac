"""Files written whole or not at all, and how saved tensors differ from those expected."""

import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor


def write_files(folder: Path, writers: dict[str, Callable[[Path], object]]) -> None:
    """Writes every file under another name first and renames them all when the last one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = {name: folder / f".{name}.partial" for name in writers}
    try:
        for name, write in writers.items():
            write(partial[name])
        for name, path in partial.items():
            os.replace(path, folder / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def misfit(saved: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    """How the saved tensors differ from those expected, None if they do not."""
    differences = {"missing": expected.keys() - saved.keys(), "unexpected": saved.keys() - expected.keys()}
    if any(differences.values()):
        return "; ".join(
            f"{len(names)} tensors {what}, for example {min(names)}" for what, names in differences.items() if names
        )
    wrong = sorted(name for name in expected if saved[name].shape != expected[name].shape)
    if not wrong:
        return None
    name = wrong[0]
    shapes = list(saved[name].shape), list(expected[name].shape)
    return f"{len(wrong)} tensors of other shapes: {name} is {shapes[0]}, needed {shapes[1]}"
