"""Files written whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path


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
