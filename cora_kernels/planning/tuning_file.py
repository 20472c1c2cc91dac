"""What `python -m cora_kernels.tune` measured on a GPU, kept in the user's cache directory, one file a GPU."""

import json
import os
import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

# Format 1 had other names for the strategies.
FORMAT = 2


def path_of(name: str) -> Path:
    """The file for a GPU: in `cora_kernels` in the user's cache directory (`XDG_CACHE_HOME` is honoured)."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "cora_kernels" / f"{re.sub('[^A-Za-z0-9]+', '-', name)}.json"


@lru_cache
def load(name: str) -> dict[str, Any]:
    """{"gpu": rates, "strategies": by problem}: what was saved, or nothing, with a warning if it cannot be read."""
    path = path_of(name)
    try:
        found = json.loads(path.read_text())
        if found["format"] == FORMAT:
            return {"gpu": found["gpu"], "strategies": found["strategies"]}
        warnings.warn(f"{path} is of another version of cora_kernels: run python -m cora_kernels.tune", stacklevel=2)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{path} cannot be read ({error}): run python -m cora_kernels.tune", stacklevel=2)
    return {"gpu": {}, "strategies": {}}


def save(name: str, gpu: dict[str, float], strategies: dict[str, Any]) -> Path:
    """Adds to what the file holds and replaces it at once; the path of the file."""
    before, path = load(name), path_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {
        "format": FORMAT,
        "gpu": before["gpu"] | gpu,
        "strategies": before["strategies"] | strategies,
    }
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(whole, indent=1))
    part.replace(path)
    load.cache_clear()
    return path
