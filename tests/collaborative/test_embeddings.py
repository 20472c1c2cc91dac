import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cora.collaborative import CollaborativeEmbeddings

USERS, ITEMS = torch.arange(6.0).view(3, 2), torch.arange(4.0).view(2, 2)


def build(user_ids: Any = (30, 10, 20), item_ids: Any = (7, 5), users: Any = USERS, items: Any = ITEMS) -> Any:
    return CollaborativeEmbeddings(user_ids, item_ids, users, items)


@pytest.mark.parametrize("ids", [[10, 30, 10], torch.tensor([10, 30, 10]), np.array([10, 30, 10])])
def test_lookup(ids: Any) -> None:
    rows = build().lookup_users(ids)
    assert rows.dtype == torch.int64 and rows.tolist() == [1, 0, 1]
    assert build().lookup_items([5, 7]).tolist() == [1, 0]
    assert build().lookup_users([]).tolist() == []


def test_text_ids() -> None:
    embeddings = build(user_ids=["ann", "bo", "cy"])
    assert embeddings.lookup_users(["cy", "ann"]).tolist() == [2, 0]
    assert embeddings.user_ids == ["ann", "bo", "cy"] and embeddings.item_ids == [7, 5]


def test_unknown_ids_get_the_mean_row_and_are_reported_once() -> None:
    embeddings = build()
    with pytest.warns(UserWarning, match=r"2 unknown user ids get the mean embedding, for example \[99, 98\]"):
        assert embeddings.lookup_users([99, 10, 98, 99]).tolist() == [3, 1, 3, 3]
    with pytest.warns(UserWarning, match=r"1 unknown user ids get the mean embedding, for example \[97\]"):
        assert embeddings.lookup_users([99, 97]).tolist() == [3, 3]
    with pytest.warns(UserWarning, match=r"1 unknown item ids get the mean embedding, for example \[99\]"):
        assert embeddings.lookup_items([99]).tolist() == [2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert embeddings.lookup_users([98, 97, 30]).tolist() == [3, 3, 0]


@pytest.mark.parametrize(
    ("user_ids", "asked", "match"),
    [
        ([30, 10, 20], ["10"], "user_ids: the embeddings have integers, got str such as '10'"),
        (["30", "10", "20"], [10], "user_ids: the embeddings have str, got integers such as 10"),
        ([30, 10, 20], [1.5], "user_ids: expected all integers or all str, got float 1.5"),
        ([30, 10, 20], torch.tensor([1.0]), r"user_ids: expected an integer tensor \[n\], got torch.float32 \[1\]"),
        ([30, 10, 20], torch.tensor([[1]]), r"user_ids: expected an integer tensor \[n\], got torch.int64 \[1, 1\]"),
    ],
)
def test_ids_of_another_kind(user_ids: Any, asked: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        build(user_ids).lookup_users(asked)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"user_ids": [1, 2, 1]}, ValueError, "user_ids: must be unique, 1 repeated, for example [1]"),
        ({"item_ids": ["a", "a"]}, ValueError, "item_ids: must be unique, 1 repeated, for example ['a']"),
        ({"user_ids": [1, 2]}, ValueError, "user_ids: expected 3, one for each row of users, got 2"),
        ({"user_ids": [1, "2", 3]}, TypeError, "user_ids: expected all integers or all str, got str '2'"),
        ({"user_ids": [1, None, 3]}, TypeError, "user_ids: expected all integers or all str, got NoneType None"),
        ({"users": USERS[:, :1]}, ValueError, "users and items must have one width, got 1 and 2"),
        ({"users": USERS[0]}, ValueError, "users: expected [rows, d] with at least one row, got [2]"),
        ({"items": ITEMS[:0]}, ValueError, "items: expected [rows, d] with at least one row, got [0, 2]"),
        ({"items": ITEMS.long()}, TypeError, "items: expected a float matrix, got torch.int64"),
        ({"items": ITEMS / 0}, ValueError, "items: 2 of 2 rows hold values that are not finite"),
    ],
)
def test_wrong_embeddings(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        build(**wrong)


@pytest.mark.parametrize("user_ids", [[30, -10, 2**40], ["ann", "Zoë", "長い名前"]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded(user_ids: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "mf.safetensors"
    build(user_ids, users=USERS.to(dtype), items=ITEMS.T.to(dtype)).save(path)
    loaded = CollaborativeEmbeddings.load(path)
    assert loaded.user_ids == user_ids and loaded.item_ids == [7, 5]
    assert torch.equal(loaded.users, USERS.to(dtype)) and torch.equal(loaded.items, ITEMS.T.to(dtype))
    assert [file.name for file in path.parent.iterdir()] == ["mf.safetensors"]


def test_an_id_with_a_zero_byte_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zero byte"):
        build(["a\0", "a", "b"]).save(tmp_path / "mf.safetensors")
    assert not list(tmp_path.iterdir())


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mf.safetensors: no file of collaborative embeddings there"):
        CollaborativeEmbeddings.load(tmp_path / "mf.safetensors")


def test_another_file(tmp_path: Path) -> None:
    path = tmp_path / "mf.safetensors"
    path.write_text("hello")
    with pytest.raises(ValueError, match="mf.safetensors: not a safetensors file"):
        CollaborativeEmbeddings.load(path)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("users", None, "missing tensor users; found ['item_ids', 'items', 'user_ids']"),
        ("user_ids", torch.tensor([1, 1, 2]), "user_ids: must be unique"),
        ("user_ids", torch.tensor([1.0, 2.0, 3.0]), "user_ids: expected int64 [n], or uint8 [n, bytes]"),
        ("user_ids", torch.full((3, 1), 255, dtype=torch.uint8), "can't decode"),
        ("items", torch.full((2, 2), torch.nan), "items: 2 of 2 rows hold values that are not finite"),
        ("items", torch.ones(2, 2, dtype=torch.int64), "items: expected a float matrix"),
    ],
)
def test_file_with_something_wrong(tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str) -> None:
    path = tmp_path / "mf.safetensors"
    build().save(path)
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors if tensor is None else tensors | {name: tensor}, path)
    with pytest.raises(ValueError, match="mf.safetensors: .*" + re.escape(message)):
        CollaborativeEmbeddings.load(path)
