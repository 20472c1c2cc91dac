"""Builds the native extension cora_kernels._C where torch and a C++ compiler are there; installs without it elsewhere.

With a CUDA build of torch and nvcc in CUDA_HOME, the CUDA kernels are part of it, for the architectures below.

python setup.py build_ext --inplace [--required] [--sanitize]
"""

from glob import glob
from os.path import exists

from setuptools import setup

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-O1", "-g"]

# Code for these, and PTX from which drivers compile for later ones.
ARCHITECTURES = ("80", "90")
PTX = "90"


def native() -> dict:
    try:
        import torch
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
    except ImportError:
        print("cora_kernels: torch is not visible to the build (pip's --no-build-isolation): no native extension")
        return {}

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
            try:
                super().run()
            except Exception as error:
                if self.required or self.sanitize:
                    raise
                reason = str(error).splitlines()[0]
                print(f"cora_kernels: the native extension was not built, torch backends serve instead ({reason})")
                self.extensions = []

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


setup(**native())
