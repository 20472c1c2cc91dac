"""The folder of codes: what is written is read, by number of its format, and what does not fit is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cora.codes import ItemCodes
from cora.codes.assign import random_codes
from cora.codes.report import as_text, neighbours, report
from cora.codes.vectors import collaborative_vectors, side_by_side, standardised


def codes(ids: Any = None) -> ItemCodes:
    return ItemCodes(list(range(12)) if ids is None else ids, random_codes(12, 2, 4, seed=0), 4, {"vectors": "random"})


@pytest.mark.parametrize("ids", [None, [f"item {one} é" for one in range(12)]])
def test_round_trip(ids: Any, tmp_path: Path) -> None:
    made = codes(ids)
    made.save(tmp_path)
    again = ItemCodes.load(tmp_path)
    assert again.item_ids == made.item_ids and torch.equal(again.codes, made.codes)
    assert (again.size, again.levels, again.about) == (4, 2, {"vectors": "random"})
    assert again.rows(made.item_ids[3:1:-1]).tolist() == [3, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(format=2), "codes of format 2, expected 1"),
        (dict(items=13), "item_ids: expected 13 rows, as index.json says, got \\[12\\]"),
        (dict(items=10**12), "item_ids: expected 1000000000000 rows"),
        (dict(levels=3), "codes: expected I64 \\[12, 3\\], got I64 \\[12, 2\\]"),
        (dict(codes=0), "codes: expected a whole number from 1, got 0"),
        (dict(codes=True), "codes: expected a whole number from 1, got True"),
        (dict(codes=2), "codes: expected \\[items, levels\\] of numbers from 0 to 1"),
        (dict(codes=10**9), "make 12,000,000,000 places for children"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    codes().save(tmp_path)
    path = tmp_path / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        ItemCodes.load(tmp_path)


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    made = codes()
    made.save(tmp_path)
    good = {"item_ids": torch.arange(12), "codes": made.codes}
    twice = made.codes.clone()
    twice[3] = twice[5]
    for change, message in (
        ({"codes": made.codes.float()}, "codes: expected I64"),
        ({"codes": twice}, "codes: must be unique, items 3 and 5 share"),
        ({"item_ids": torch.zeros(12, dtype=torch.int64)}, "item_ids: must be unique, 11 of 12 are repeated"),
    ):
        save_file(good | change, tmp_path / "codes.safetensors")
        with pytest.raises(ValueError, match=f"codes.safetensors: {message}"):
            ItemCodes.load(tmp_path)
    (tmp_path / "codes.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="codes.safetensors: there is no such file"):
        ItemCodes.load(tmp_path)


def test_items_without_a_code_are_named() -> None:
    with pytest.raises(ValueError, match="index: 2 items of the data have no code, for example 99, 98"):
        codes().rows([1, 99, 98])
    with pytest.raises(TypeError, match="item_ids: expected all int or all str, got int, str"):
        ItemCodes([1, "a"], torch.tensor([[0], [1]]), 2)


def test_the_report_counts_collisions_use_and_neighbours() -> None:
    made = ItemCodes([1, 2, 3, 4], torch.tensor([[0, 0], [0, 1], [0, 2], [1, 0]]), 3)
    found = report(torch.tensor([[0, 0], [0, 0], [0, 2], [1, 0]]), made)
    assert (found["collisions_before"], found["collisions_after"], found["moved"]) == (0.5, 0.0, 0.25)
    assert found["used"] == [2, 3] and found["perplexity"] == [1.8, 2.8]
    assert neighbours(made, 0) == [(1, 1), (2, 1)] and neighbours(made, 3) == []
    text = as_text(found, made, ["one", "two", "three", "four"], [0, 3])
    assert "0-0  one: two (1), three (1)" in text and "1-0  four: alone" in text


def test_vectors_beside_each_other_weigh_the_same() -> None:
    torch.manual_seed(0)
    narrow, wide = 100 * torch.randn(50, 3) + 7, 0.01 * torch.randn(50, 40)
    found = side_by_side(narrow, wide)
    torch.testing.assert_close(found.mean(0), torch.zeros(43), atol=1e-5, rtol=0)
    parts = found[:, :3].square().sum(), found[:, 3:].square().sum()
    torch.testing.assert_close(*parts)
    torch.testing.assert_close(found.square().mean(), torch.tensor(1.0))
    same = torch.cat([narrow, torch.ones(50, 1)], 1)
    torch.testing.assert_close(standardised(same).square().mean(0), torch.tensor([1.0, 1.0, 1.0, 0.0]))


def test_an_item_without_a_training_row_has_no_collaborative_vector() -> None:
    import pandas as pd

    train = pd.DataFrame({"user_id": [1, 1, 2, 2, 3, 3], "item_id": [5, 6, 5, 6, 7, 8]})
    found = collaborative_vectors(train, [6, 9, 5, 7], width=4)
    assert found.shape == (4, 4) and float(found[1].abs().max()) == 0
    torch.testing.assert_close(found[[0, 2, 3]].norm(dim=1), torch.ones(3))
    torch.testing.assert_close(found[0], found[2])  # whoever has one has the other
    assert float(found[0] @ found[3]) < 0.1
