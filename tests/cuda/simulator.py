"""The CUDA ops on CPU tensors: their drivers and launchers as compiled, their kernels' PTX executed by ptxsim.

Beside the sources, a stand-in for the CUDA runtime is compiled that hands every launch to Python.
"""

import ctypes
import fcntl
import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "csrc" / "cuda"
KERNELS = ("lowrank_gemm", "shrink", "outer", "decode")
_CALLBACK = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_uint, ctypes.c_size_t, ctypes.c_void_p
)


def missing() -> str | None:
    """What stands against compiling, if anything."""
    if shutil.which("nvcc") is None:
        return "nvcc is not on the machine: CUDA kernels are not compiled"
    return None


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def fingerprint() -> str:
    folders = SOURCES, Path(__file__).parent / "simulated"
    files = [path for folder in folders for path in sorted(folder.iterdir())] + [SOURCES.parent / "checks.h"]
    text = b"".join([path.read_bytes() for path in files] + [torch.__version__.encode()])
    return hashlib.sha256(text).hexdigest()[:16]


def build(cache: Path) -> Path:
    """The folder with the library and the PTX, compiled if it is not there, by one process at a time."""
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = cache / fingerprint()
        if not folder.is_dir():
            work = cache / "work"
            shutil.rmtree(work, ignore_errors=True)
            compile_into(work)
            work.rename(folder)
        return folder


def compile_into(work: Path) -> None:
    tree = work / "csrc" / "cuda"
    shutil.copytree(SOURCES, tree)
    shutil.copy(SOURCES.parent / "checks.h", tree.parent)
    for path in (Path(__file__).parent / "simulated").iterdir():
        shutil.copy(path, tree)
    library = tree / "library.cpp"
    library.write_text(library.read_text().replace("IMPL(cora_kernels, CUDA, m)", "IMPL(cora_kernels, CPU, m)"))

    def compile_kernel(name: str) -> None:
        options = ("-O3", "-arch=compute_80", "-code=compute_80", "--keep", "--keep-dir", work)
        run("nvcc", *options, "-Xcompiler=-fPIC", "-c", tree / f"{name}.cu", "-o", work / f"{name}.o")

    def compile_drivers() -> None:
        # In one piece: each would read torch's headers again.
        (tree / "drivers.cpp").write_text('#include "ops.cpp"\n#include "library.cpp"\n#include "runtime.cpp"\n')
        options = ["-std=c++20", "-O1", '-DCORA_CUDA_ARCHITECTURES="simulated"', "-Xcompiler=-fPIC"]
        options += [f"-I{path}" for path in include_paths()]
        run("nvcc", *options, "-c", tree / "drivers.cpp", "-o", work / "drivers.o")

    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(compile_kernel, KERNELS[0]), pool.submit(compile_drivers)]
        tasks += [pool.submit(compile_kernel, name) for name in KERNELS[1:]]
        for task in tasks:
            task.result()
    objects = [work / f"{name}.o" for name in (*KERNELS, "drivers")]
    libraries = [f"-L{path}" for path in library_paths()] + ["-ltorch_cpu", "-lc10"]
    run("g++", "-shared", *objects, *libraries, "-o", work / "simulated.so")


class Simulator:
    """Executes launches while `running`; `launches` lists them: (kernel, Stats)."""

    def __init__(self, ptxsim: ModuleType, folder: Path) -> None:
        self.ptxsim, self.launches = ptxsim, []
        self.options: dict[str, object] | None = {}
        self.ptx = {name: (folder / f"{name}.ptx").read_text() for name in KERNELS}
        self._owner = {entry: name for name, ptx in self.ptx.items() for entry in _entries(ptx)}
        self._modules: dict[str, object] = {}
        self._error: BaseException | None = None
        self._library = ctypes.CDLL(str(folder / "simulated.so"))
        self._library.bytes_at.restype = ctypes.c_int64
        self._library.bytes_at.argtypes = [ctypes.c_uint64]
        self._callback = _CALLBACK(self._guarded)
        self._library.set_callback(self._callback)

    @contextmanager
    def running(self, multiprocessors: int = 108, **options) -> Iterator[list]:
        """Inside, launches run with these options of ptxsim: races and reads of unwritten shared memory raise.

        Few multiprocessors make the launchers choose large tiles.
        """
        self.launches, self._error = [], None
        self._library.set_multiprocessors(multiprocessors)
        self.options = {"racecheck": "raise", "initcheck": "raise"} | options
        yield self.launches
        if self._error is not None:
            raise self._error

    @contextmanager
    def recording(self, multiprocessors: int) -> Iterator[list]:
        """Inside, launches are not executed but listed: (kernel, grid, threads, bytes of shared memory)."""
        self.launches, self.options, self._error = [], None, None
        self._library.set_multiprocessors(multiprocessors)
        yield self.launches

    def _guarded(self, *launch) -> None:
        # An exception cannot pass through the compiled launcher: the first is raised at the end.
        try:
            if self._error is None:
                self._launch(*launch)
        except BaseException as error:
            self._error = error

    def _launch(self, kernel: bytes, grid, block: int, shared: int, arguments: int) -> None:
        name = kernel.decode()
        if self.options is None:
            self.launches.append((name, tuple(grid[:3]), block, shared))
            return
        if name not in self._modules:
            self._modules[name] = self.ptxsim.load(alone(self.ptx[self._owner[name]], name))
        module = self._modules[name]
        (parameter,) = module.kernels[name].params
        words = np.frombuffer(ctypes.string_at(arguments, parameter.size), np.uint64)
        parts = [self._pointer(int(word)) or word.tobytes() for word in words]
        stats = module.launch(name, tuple(grid[:3]), block, [parts], shared, **self.options)
        self.launches.append((self._owner[name], stats))

    def _pointer(self, word: int):
        size = self._library.bytes_at(word)
        if not size:
            return None
        memory = (ctypes.c_uint8 * size).from_address(word)
        return self.ptxsim.DevicePointer(np.frombuffer(memory, np.uint8))


def _entries(ptx: str) -> list[str]:
    return re.findall(r"\.entry\s+(\w+)", ptx)


def alone(ptx: str, name: str) -> str:
    """The module without its other kernels: parsing takes longer than running."""
    head, *kernels = re.split(r"(?=^(?:\t?// \.globl|\.visible \.entry|\.entry))", ptx, flags=re.M)
    return head + "".join(text for text in kernels if ".entry" not in text or name in _entries(text))
