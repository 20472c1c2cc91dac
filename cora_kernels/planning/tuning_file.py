"""What `python -m cora_kernels.tune` measured on a GPU, kept in the user's cache directory, one file a GPU."""

import json
import math
import os
import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from cora_kernels.planning.tile_sizes import GemmConfig
from cora_kernels.planning.versions import version_of

# Format 1 had other names for the strategies, format 2 did not say which Triton was timed.
FORMAT = 3
RATES = (
    *("matrix", "simple", "bandwidth", "exposed", "host"),
    *("gemm", "gemm_cuda", "gemm_descriptors", "fill", "fill_descriptors"),
)
# Those with a tile of a GEMM of ours, and those without.
_TILED = ("one_pass", "two_kernels", "descriptors")
STRATEGIES = (*_TILED, "separate", "decode")
_ADVICE = "run python -m cora_kernels.tune"


def versions() -> dict[str, str | None]:
    """Of what was timed: another Triton compiles other kernels, another torch brings another GEMM of the vendor."""
    return {"triton": version_of("triton"), "torch": str(torch.__version__)}


def path_of(name: str) -> Path:
    """The file for a GPU: in `cora_kernels` in the user's cache directory (`XDG_CACHE_HOME` is honoured)."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "cora_kernels" / f"{re.sub('[^A-Za-z0-9]+', '-', name)}.json"


@lru_cache
def load(name: str) -> dict[str, Any]:
    """{"gpu": rates, "strategies": by problem}: what was saved, or nothing, with a warning if it cannot be used."""
    path = path_of(name)
    nothing: dict[str, Any] = {"gpu": {}, "strategies": {}}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            problem = "is of another version of cora_kernels"
        elif found["versions"] != versions():
            was, now = (", ".join(f"{k} {v}" for k, v in of.items()) for of in (found["versions"], versions()))
            problem = f"was measured with {was}, here is {now}"
        else:
            _check(found)
            return {"gpu": found["gpu"], "strategies": found["strategies"]}
    except FileNotFoundError:
        return nothing
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"cannot be read ({error})"
    warnings.warn(f"{path} {problem}: {_ADVICE}", stacklevel=2)
    return nothing


def _check(found: Any) -> None:
    """Raises ValueError, KeyError or TypeError unless every rate and every strategy is one that can be used."""
    for rate, value in found["gpu"].items():
        if rate not in RATES or not _positive(value):
            raise ValueError(f"the rate {rate!r} is {value!r}")
    for key, one in found["strategies"].items():
        if one["strategy"] not in STRATEGIES or not _positive(one["seconds"]):
            raise ValueError(f"{key!r} is {one!r}")
        config = one["config"]
        whole = isinstance(config, list) and len(config) == len(GemmConfig._fields)
        if config is not None and not (whole and all(map(_positive, config[:-1])) and isinstance(config[-1], bool)):
            raise ValueError(f"the tile of {key!r} is {config!r}")
        if (config is not None) != (one["strategy"] in _TILED):
            raise ValueError(f"{key!r} has the strategy {one['strategy']!r} and the tile {config!r}")


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def save(name: str, gpu: dict[str, float], strategies: dict[str, Any]) -> Path:
    """Adds to what the file holds and replaces it at once; the path of the file."""
    before, path = load(name), path_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {
        "format": FORMAT,
        "versions": versions(),
        "gpu": before["gpu"] | gpu,
        "strategies": before["strategies"] | strategies,
    }
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(whole, indent=1), encoding="utf-8")
    part.replace(path)
    load.cache_clear()
    return path
