"""Builds the native extension cora_kernels._C for the torch of the environment; installs without it where it cannot.

pip and other frontends build in an environment of their own, without torch. The torch of the environment that is
installed into is found there all the same, so no second one is downloaded. What was built, or why nothing, is said in
one line and recorded in cora_kernels/built.json, for the warning at first use: pip hides what a build prints.

With a CUDA build of torch and nvcc in CUDA_HOME, the CUDA kernels are part of it, for the architectures below.

python setup.py build_ext --inplace [--required] [--sanitize]
"""

import json
import os
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from glob import glob
from os.path import exists, join
from shutil import which

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-O1", "-g"]

# Code for these, and PTX from which drivers compile for later ones.
ARCHITECTURES = ("80", "90")
PTX = "90"

_ASK = """
import importlib.util, json, sys, sysconfig
found = importlib.util.find_spec("torch") is not None
print(json.dumps([sysconfig.get_config_var("EXT_SUFFIX"), found, [path for path in sys.path if path]]))
"""


def is_made_for_the_build() -> bool:
    """Whether this environment is the frontend's own, which it put setuptools into; pip puts it beside."""
    return setuptools.__file__.startswith(join(sys.prefix, ""))


def interpreters() -> Iterator[str]:
    """The Python of the environment that is installed into: pip builds with that very one, and hides its packages.

    Others (uv, build) make an environment for the build. Then the environment is the one that is activated, .venv
    beside the sources, or that of which the new one was made.
    """
    yield sys.executable
    if not is_made_for_the_build():
        return
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if exists(join(folder, "..", "pyvenv.cfg")) or exists(join(folder, "..", "conda-meta")):
            yield from filter(None, [which("python", path=folder)])
    yield from filter(None, [which("python", path=join(".venv", "Scripts" if os.name == "nt" else "bin"))])
    yield getattr(sys, "_base_executable", sys.executable)


def show_torch() -> None:
    """Makes the torch of the environment importable: behind what the build has of its own, which keeps precedence."""
    for python in dict.fromkeys(interpreters()):
        # -E: what the frontend hides the environment with are variables that Python reads.
        asked = subprocess.run([python, "-E", "-c", _ASK], capture_output=True, text=True)
        # The last line: a .pth file of the environment may print too.
        suffix, found, path = json.loads(asked.stdout.splitlines()[-1]) if asked.returncode == 0 else ("", False, [])
        if found and suffix == sysconfig.get_config_var("EXT_SUFFIX"):
            sys.path += [one for one in path if one not in sys.path]
            return


def record(command: build_ext, torch_version: str | None, reason: str) -> None:
    """Says in one line what was built, or why nothing; leaves it beside the package and, for a wheel, in its name."""
    nothing = f"not built, torch's operators serve: {reason}"
    made = f"built for torch {torch_version}" if torch_version else nothing
    print(f"cora_kernels: native extension {made}", flush=True)
    folder = join("" if command.inplace else command.build_lib, "cora_kernels")
    if torch_version is None:
        command.extensions = command.distribution.ext_modules = []
        for stale in () if command.inplace else glob(join(folder, "_C.*")):
            os.remove(stale)
    os.makedirs(folder, exist_ok=True)
    with open(join(folder, "built.json"), "w", encoding="utf-8") as file:
        json.dump({"suffix": sysconfig.get_config_var("EXT_SUFFIX"), "torch": torch_version, "reason": reason}, file)
    wheel = command.distribution.get_command_obj("bdist_wheel", create=False)
    if wheel is not None:
        wheel.root_is_pure = torch_version is None
        public, _, local = (torch_version or "").partition("+")
        wheel.build_number = f"{public}.torch{local and '.' + local}" if public else None


class BuildNothing(build_ext):
    """Where there is no torch to build for."""

    reason = ""

    def run(self) -> None:
        record(self, None, self.reason)


def native() -> dict:
    """The arguments of setup that concern the extension."""
    show_torch()
    try:
        with warnings.catch_warnings():
            # pip shows warnings of a build, and an environment with torch alone has no NumPy.
            warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
            import torch
            from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        which_one = "activated environment" if is_made_for_the_build() else "environment"
        BuildNothing.reason = f"the build found no torch in the {which_one} ({error})"
        return {"ext_modules": [Extension("cora_kernels._C", [])], "cmdclass": {"build_ext": BuildNothing}}

    class BuildNative(BuildExtension):
        user_options = BuildExtension.user_options + [
            ("required", None, "fail if the extension cannot be built"),
            ("sanitize", None, "build with AddressSanitizer and UBSan; implies --required"),
        ]
        boolean_options = BuildExtension.boolean_options + ["required", "sanitize"]

        def initialize_options(self) -> None:
            super().initialize_options()
            self.required = self.sanitize = False

        def run(self) -> None:
            if self.sanitize:
                for extension in self.extensions:
                    extension.extra_compile_args["cxx"] += SANITIZERS
                    extension.extra_link_args += SANITIZERS
            # What an earlier build left is newer than the sources, and may be for another torch; ninja sees that.
            self.force = True
            try:
                super().run()
            except Exception as error:
                if self.required or self.sanitize:
                    raise
                compiler = os.environ.get("CXX", "c++")
                why = str(error).splitlines()[0] if which(compiler.split()[0]) else "there is no such compiler"
                record(self, None, f"{compiler}: {why}")
            else:
                record(self, str(torch.__version__), "")

    compiles = CUDA_HOME is not None and all(exists(f"{CUDA_HOME}/{f}") for f in ("bin/nvcc", "include/cuda_runtime.h"))
    cuda = torch.version.cuda is not None and compiles
    if torch.version.cuda is not None and not cuda:
        print("cora_kernels: nvcc is not in CUDA_HOME: the native extension goes without CUDA kernels")
    sources = glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp")
    if cuda:
        sources += glob("csrc/cuda/*.cpp") + glob("csrc/cuda/*.cu")
    codes = [(arch, f"sm_{arch}") for arch in ARCHITECTURES] + [(PTX, f"compute_{PTX}")]
    names = ",".join(code for _, code in codes)
    extension = (CUDAExtension if cuda else CppExtension)(
        "cora_kernels._C",
        sorted(sources),
        depends=sorted(path for ending in ("h", "inl", "cuh") for path in glob(f"csrc/**/*.{ending}", recursive=True)),
        extra_compile_args={
            # GCC 12 takes its own headers' undefined vectors for a mistake.
            "cxx": ["-O3", "-g0", "-fopenmp", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
            + ([f'-DCORA_CUDA_ARCHITECTURES="{names}"'] if cuda else []),
            "nvcc": ["-O3"] + [f"-gencode=arch=compute_{arch},code={code}" for arch, code in codes],
        },
        extra_link_args=["-fopenmp"],
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildNative}}


if __name__ == "__main__":
    setup(**native())
