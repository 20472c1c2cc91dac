"""What setup.py finds, says and records; and what is said at first use where nothing was built."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import warnings
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import cora_kernels
from cora_kernels import dispatch, lora_linear
from cora_kernels.backends import extension
from tests.modules import load_file

ROOT = Path(__file__).parents[2]


@pytest.fixture
def setup_py() -> ModuleType:
    return load_file(ROOT / "setup.py", "setup_py")


def make_environment(folder: Path, *, torch_there: bool) -> Path:
    """The interpreter of a virtual environment with or without a package torch."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    if torch_there:
        (packages / "torch").mkdir()
        (packages / "torch" / "__init__.py").write_text("")
    return folder / "bin" / "python"


@pytest.mark.skipif(os.name == "nt", reason="lays out environments as POSIX does")
def test_the_torch_of_pips_environment(setup_py: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip runs the environment's own interpreter and hides its packages by PYTHONPATH."""
    python = make_environment(tmp_path / "with", torch_there=True)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hidden"))
    monkeypatch.setattr(sys, "path", [one for one in sys.path if "site-packages" not in one])
    before = list(sys.path)
    setup_py.show_torch()
    assert sys.path[: len(before)] == before
    assert any(
        Path(one).samefile(python.parents[1]) for one in sys.path[len(before) :] for one in [Path(one).parents[2]]
    )

    monkeypatch.setattr(sys, "path", before)
    monkeypatch.setattr(sys, "executable", str(make_environment(tmp_path / "without", torch_there=False)))
    monkeypatch.setattr(setup_py.setuptools, "__file__", str(tmp_path / "overlay" / "setuptools" / "__init__.py"))
    setup_py.show_torch()
    assert sys.path == before


@pytest.mark.skipif(os.name == "nt", reason="lays out environments as POSIX does")
def test_the_activated_environment_where_the_build_has_one_of_its_own(
    setup_py: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make_environment(tmp_path / "own", torch_there=False)
    activated = make_environment(tmp_path / "activated", torch_there=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(own))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "own"))
    monkeypatch.setattr(setup_py.setuptools, "__file__", str(tmp_path / "own" / "lib" / "setuptools" / "__init__.py"))
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, (own.parent, "/usr/bin", activated.parent))))
    found = list(setup_py.interpreters())
    assert found[0] == str(own) and str(activated) in found and "/usr/bin/python3" not in found
    monkeypatch.setattr(sys, "path", [])
    setup_py.show_torch()
    assert any(str(activated.parents[1]) in one for one in sys.path)


def build_wheel(tmp_path: Path, python: str | Path, **variables: str) -> tuple[str, zipfile.ZipFile]:
    """What a build of the tracked sources prints, without isolation, and the wheel."""
    source = tmp_path / "source"
    shutil.copytree(
        ROOT,
        source,
        ignore=shutil.ignore_patterns(".*", "build", "runs", "tests", "bench", "*.so", "*.egg-info", "built.json"),
    )
    made = subprocess.run(
        [python, "setup.py", "-q", "bdist_wheel", "--dist-dir", tmp_path],
        cwd=source,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    return made.stdout, zipfile.ZipFile(wheel)


def check_nothing_built(printed: str, wheel: zipfile.ZipFile, reason: str) -> None:
    assert f"cora_kernels: native extension not built, torch's operators serve: {reason}" in printed
    assert Path(str(wheel.filename)).name.endswith("-py3-none-any.whl")
    record = json.loads(wheel.read("cora_kernels/built.json"))
    assert record["torch"] is None and record["reason"].startswith(reason)
    assert not any(name.endswith(".so") for name in wheel.namelist())
    assert any(name == "cora/export/bank.py" for name in wheel.namelist())


@pytest.mark.slow
def test_without_a_compiler(tmp_path: Path) -> None:
    printed, wheel = build_wheel(tmp_path, sys.executable, CXX="no-such-compiler")
    check_nothing_built(printed, wheel, "no-such-compiler: there is no such compiler")


@pytest.mark.slow
def test_without_torch(tmp_path: Path) -> None:
    """The environment has setuptools alone."""
    python = make_environment(tmp_path / "bare", torch_there=False)
    (packages,) = (tmp_path / "bare").glob("lib/python*/site-packages")
    # Its dist-info too: setuptools finds its own commands there.
    files = importlib.metadata.files("setuptools") or []
    for name in {file.parts[0] for file in files if file.parts[0].startswith(("setuptools", "_distutils_hack"))}:
        shutil.copytree(str(importlib.metadata.distribution("setuptools").locate_file(name)), packages / name)
    printed, wheel = build_wheel(tmp_path, python, PATH=os.defpath)
    check_nothing_built(printed, wheel, "the build found no torch in the activated environment")


def again(monkeypatch: pytest.MonkeyPatch, record: dict[str, Any] | None, tmp_path: Path) -> ModuleType:
    """The module, loaded a second time where `_C` is not there and setup.py recorded this."""
    folder = tmp_path / "cora_kernels" / "backends"
    folder.mkdir(parents=True)
    shutil.copy(extension.__file__, folder)
    if record is not None:
        (folder.parent / "built.json").write_text(json.dumps(record))
    monkeypatch.delattr(cora_kernels, "_C", raising=False)
    monkeypatch.setitem(sys.modules, "cora_kernels._C", None)
    return load_file(folder / "extension.py", "loaded_again")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "the native extension is not there (it was not built)"),
        (dict(torch=None, reason="no compiler"), "the native extension is not there (no compiler)"),
        (dict(torch="1.9.0", reason="", suffix=".so"), "the native extension is not there (it was not built)"),
        (
            dict(torch="1.9.0", reason="", suffix=sysconfig.get_config_var("EXT_SUFFIX")),
            f"the native extension was built for torch 1.9.0, this is {torch.__version__}",
        ),
    ],
    ids=["no record", "not built", "another Python", "another torch"],
)
def test_the_first_call_that_falls_back_warns_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record: dict[str, Any] | None, reason: str
) -> None:
    bare = again(monkeypatch, record, tmp_path)
    monkeypatch.setattr(dispatch, "extension", bare)
    monkeypatch.setattr(dispatch, "fast_path", lambda *call: None)
    monkeypatch.setattr("cora_kernels.functional.fast_path", lambda *call: None, raising=False)
    monkeypatch.setattr(dispatch.cpu, "availability", lambda: bare.unavailable)
    x, weight = torch.ones(1, 2, 8), torch.ones(4, 8)
    said = re.escape(
        f"cora_kernels: on the CPU torch's operators serve, more slowly: {reason}; to build it, pip install"
    )
    with pytest.warns(UserWarning, match=said):
        y = lora_linear(x, weight, torch.ones(8, 2), torch.ones(2, 4))
    assert torch.equal(y, torch.full((1, 2, 4), 8.0 + 16.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lora_linear(x, weight, torch.ones(8, 2), torch.ones(2, 4))
