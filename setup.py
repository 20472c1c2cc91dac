"""Builds the native extension cora_kernels._C where torch and a C++ compiler are there; installs without it elsewhere.

python setup.py build_ext --inplace [--required] [--sanitize]
"""

from glob import glob

from setuptools import setup

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-O1", "-g"]


def native() -> dict:
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
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

    extension = CppExtension(
        "cora_kernels._C",
        sorted(glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp")),
        # GCC 12 takes its own headers' undefined vectors for a mistake.
        extra_compile_args={"cxx": ["-O3", "-g0", "-fopenmp", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]},
        extra_link_args=["-fopenmp"],
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildNative}}


setup(**native())
