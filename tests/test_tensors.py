"""Files that strangers made: truncated, hostile, of another shape. Each is refused at once, with one error."""

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cora.collaborative import CollaborativeEmbeddings
from cora.tensors import Budget, described, read_json, read_tensors

LARGE = 10 * 2**40


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def tensor(dtype: str, shape: list[Any], start: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HOSTILE: list[tuple[str, Any, str]] = [
    (
        "10 TB",
        {"users": tensor("F32", [LARGE // 4, 1], 0, LARGE)},
        "its tensors need 10,995,116,277,760 bytes",
    ),
    ("overflow", {"users": tensor("F32", [2**62, 2**62], 0, 4)}, "not a safetensors file"),
    ("negative", {"users": tensor("F32", [-1, -1], 0, 4)}, "not a safetensors file"),
    ("many dimensions", {"users": tensor("F32", [1] * 9, 0, 4)}, "not a safetensors file"),
    ("fraction", {"users": tensor("F32", [1.0], 0, 4)}, "not a safetensors file"),
    ("flag", {"users": tensor("U8", [True], 0, 1)}, "not a safetensors file"),
    ("dtype", {"users": tensor("PICKLE", [1], 0, 4)}, "not a safetensors file .*PICKLE"),
    ("no offsets", {"users": {"dtype": "F32", "shape": [1]}}, "not a safetensors file"),
    ("three offsets", {"users": tensor("F32", [1], 0, 4) | {"data_offsets": [0, 4, 8]}}, "not a safetensors file"),
    ("offsets of text", {"users": tensor("F32", [1], "0", "4")}, "not a safetensors file"),
    ("list", [], "not a safetensors file"),
    ("no tensor", {"users": 3}, "not a safetensors file"),
    ("no JSON", b"{", "not a safetensors file"),
    ("no text", b"\xff\xfe{}", "not a safetensors file"),
    ("deep", b"[" * 100_000, "not a safetensors file"),
]


@pytest.mark.parametrize(("header", "message"), [one[1:] for one in HOSTILE], ids=[one[0] for one in HOSTILE])
def test_hostile_headers(tmp_path: Path, header: Any, message: str) -> None:
    path = write(tmp_path / "e.safetensors", header)
    started = time.perf_counter()
    with pytest.raises(ValueError, match=f"e.safetensors: {message}") as error:
        CollaborativeEmbeddings.load(path)
    assert time.perf_counter() - started < 0.5
    assert len(str(error.value)) - len(str(tmp_path)) <= 300


@pytest.mark.parametrize("length", [0, 7, 8, 2**63, 2**64 - 1])
def test_lengths_of_headers_that_cannot_be(tmp_path: Path, length: int) -> None:
    path = tmp_path / "e.safetensors"
    path.write_bytes(struct.pack("<Q", length)[: min(length, 8)])
    with pytest.raises(ValueError, match="not a safetensors file"):
        described(path)


def test_a_file_with_holes_larger_than_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "e.safetensors", {"users": tensor("F32", [LARGE // 4, 1], 0, LARGE)})
    with path.open("r+b") as file:
        try:
            file.truncate(path.stat().st_size + LARGE)
        except OSError:
            pytest.skip("this file system has no files of that size")
    with pytest.raises(ValueError, match="bytes, this machine has a memory of"):
        described(path)


def test_every_cut_and_more_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    save_file({"a": torch.ones(3), "b": torch.zeros(2, 2, dtype=torch.int64)}, path)
    whole = path.read_bytes()
    assert {name: one.shape for name, one in described(path).items()} == {"a": (3,), "b": (2, 2)}
    assert torch.equal(read_tensors(path)["a"], torch.ones(3))
    for cut in [*(whole[:n] for n in range(len(whole))), whole + b"\0"]:
        path.write_bytes(cut)
        with pytest.raises(ValueError, match=r"e.safetensors: (not a safetensors file|its tensors need)"):
            read_tensors(path)


def test_tensors_that_overlap_or_leave_a_hole(tmp_path: Path) -> None:
    for second in ((0, 4), (8, 12)):
        header = {"a": tensor("F32", [1], 0, 4), "b": tensor("F32", [1], *second)}
        path = write(tmp_path / "e.safetensors", header, bytes(second[1]))
        with pytest.raises(ValueError, match="e.safetensors: not a safetensors file"):
            read_tensors(path)


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(FileNotFoundError, match="config.json: there is no such file"):
        read_json(path)
    for text, message in (("{", "not JSON"), ("[1]", "expected a JSON object, got list"), ("[" * 10**5, "not JSON")):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"config.json: {message}"):
            read_json(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="config.json: not JSON"):
        read_json(path)
    path.write_text(" " * (16 * 2**20 + 1))
    with pytest.raises(ValueError, match="16,777,217 bytes, expected a JSON object of at most 16,777,216"):
        read_json(path)


def test_a_budget_is_of_all_that_is_made(tmp_path: Path) -> None:
    with Budget("config", 100):
        nn.Linear(8, 8)
    with pytest.raises(ValueError, match="config: more than 100 values"), Budget("config", 100):
        for _ in range(3):
            nn.Linear(8, 4)
    with pytest.raises(ValueError, match="config: more than 100 values"), Budget("config", 100):
        nn.Linear(10**9, 10**9)
