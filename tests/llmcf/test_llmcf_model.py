"""What the model reads of a row, what it does not, and that a saved or exported one gives the same scores."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cora.data import Interactions, Splits, split
from cora.data.thoughts import Thoughts
from cora.methods.llmcf.config import LLMCFConfig
from cora.methods.llmcf.fitting import _told
from cora.methods.llmcf.model import LLMCFModel, Scorer, Told
from cora.methods.llmcf.rows import Catalogue, Rows

_SMALL: dict[str, Any] = dict(width=8, hidden=(16, 8), max_history=6)


def model_of(data: Interactions, splits: Splits, thoughts: Thoughts, seed: int = 0, **given: Any) -> LLMCFModel:
    config = LLMCFConfig(**{"thoughts": "made", **_SMALL, **given})
    catalogue = Catalogue.of(splits.train, data.titles, data.genres, (thoughts.item_ids, thoughts.items))
    none = Told.none(catalogue, config.max_history)
    torch.manual_seed(seed)
    return LLMCFModel(
        config, catalogue, none if config.feature == "none" else _told(thoughts, catalogue, splits, config)
    )


@pytest.fixture(scope="module")
def model(data: Interactions, splits: Splits, thoughts: Thoughts) -> LLMCFModel:
    return model_of(data, splits, thoughts).eval()


def read(model: LLMCFModel, frame: pd.DataFrame, splits: Splits) -> tuple[Rows, Any]:
    rows = model.catalogue.rows(frame, splits, model.config.max_history)
    return rows, model.retrieve(rows, frame["timestamp"].to_numpy())


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_no_example_is_of_the_rows_moment_or_later(model: LLMCFModel, splits: Splits, part: str) -> None:
    frame = splits.parts()[part]
    _, found = read(model, frame, splits)
    times = frame["timestamp"].to_numpy()[:, None]
    places = found.places.numpy()
    assert (model.told.times.numpy()[places] < times)[places >= 0].all()
    assert (places >= 0).any(1).mean() > 0.9
    if part == "train":  # the rows of the examples are there, and are not told of themselves
        key = ["user_id", "item_id", "timestamp"]
        own = pd.MultiIndex.from_frame(frame[key])
        ids = [model.catalogue.user_ids[one - 1] for one in model.told.rows.user.tolist()]
        items = [model.catalogue.item_ids[one - 1] for one in model.told.rows.item.tolist()]
        of_examples = list(zip(ids, items, model.told.times.tolist(), strict=True))
        assert len(set(own) & set(of_examples)) == len(set(of_examples))
        for row, chosen in zip(own, places, strict=True):
            assert row not in {of_examples[place] for place in chosen if place >= 0}


def turned(data: Interactions, thoughts: Thoughts, later: Any) -> tuple[Interactions, Splits, Thoughts]:
    """The labels of rows of which `later` is true of their times the other way round, and the texts of such examples
    others."""
    change = later(data.frame["timestamp"])
    frame = data.frame.assign(label=data.frame["label"].where(~change, 1 - data.frame["label"]))
    moved = later(thoughts.rows["timestamp"])
    rows = thoughts.rows.assign(label=thoughts.rows["label"].where(~moved, 1 - thoughts.rows["label"]))
    places = torch.tensor(moved.to_numpy())[:, None]
    vectors = {kind: torch.where(places, -one.roll(1, 0), one) for kind, one in thoughts.vectors.items()}
    other = dataclasses.replace(data, frame=frame)
    return other, split(other), dataclasses.replace(thoughts, rows=rows, vectors=vectors)


@pytest.mark.parametrize("feature", ["ict", "knn", "none"])
def test_what_comes_at_the_rows_moment_or_later_changes_nothing(
    data: Interactions, splits: Splits, thoughts: Thoughts, feature: str
) -> None:
    """Neither the label of the row itself, which is one of those, nor a later label or text; an earlier one does."""
    for moment in (120, 250, 330, 380):
        frame = data.frame[data.frame["timestamp"] == moment]
        assert len(frame)
        expected = model_of(data, splits, thoughts, feature=feature).eval().score_rows(frame, splits)
        other = turned(data, thoughts, lambda times, moment=moment: times >= moment)
        changed = model_of(*other, feature=feature).eval()
        rows = frame.assign(label=1 - frame["label"])
        assert np.array_equal(changed.score_rows(rows, other[1]), expected)
        earlier = turned(data, thoughts, lambda times, moment=moment: times < moment)
        assert not np.allclose(model_of(*earlier, feature=feature).eval().score_rows(frame, earlier[1]), expected)


def test_the_past_of_a_row(model: LLMCFModel, data: Interactions, splits: Splits) -> None:
    frame = splits.valid[:40]
    rows, _ = read(model, frame, splits)
    for at, row in enumerate(frame.itertuples()):
        before = data.frame[(data.frame["user_id"] == row.user_id) & (data.frame["timestamp"] < row.timestamp)]
        before = before[before["item_id"] != row.item_id][-6:]
        there = rows.rated[at] != 0
        assert [model.catalogue.item_ids[one - 1] for one in rows.past[at][there].tolist()] == before[
            "item_id"
        ].tolist()
        assert (rows.rated[at][there] > 0).tolist() == (before["label"] == 1).tolist()
        assert (there.int().diff() >= 0).all()


@pytest.mark.parametrize(("feature", "cot"), [
    ("ict", "llm"), ("ict", "none"), ("ict", "template"), ("knn", "llm"), ("none", "llm"),
])  # fmt: skip
@pytest.mark.parametrize("backbone", ["deepfm", "xdeepfm", "dcnv2", "autoint", "din"])
def test_the_scorer_is_the_model(
    data: Interactions, splits: Splits, thoughts: Thoughts, feature: str, cot: str, backbone: str
) -> None:
    made = model_of(data, splits, thoughts, feature=feature, cot=cot, backbone=backbone)
    assert (made.told.texts is None) == (feature != "ict" or cot == "none")
    rows, found = read(made, splits.valid[:30], splits)
    logits, loss = made.eval()(rows, found)
    torch.testing.assert_close(made.scores(rows, found), logits.detach())
    assert (float(loss.detach()) > 0) == (feature == "ict" and cot != "none") and float(loss.detach()) <= 2


def test_a_row_without_examples_is_the_row_alone(data: Interactions, splits: Splits, thoughts: Thoughts) -> None:
    """Before all examples f is that of the sequence [x]."""
    made = model_of(data, splits, thoughts).eval()
    first = data.frame[data.frame["timestamp"] == 0]
    rows, found = read(made, first, splits)
    assert (found.places == -1).all()
    f = made.ict.read(  # type: ignore[union-attr]
        made.ict.of_row(made._flat(*made.read(rows, *looked_up(made, rows)), rows)),  # type: ignore[union-attr]
        torch.zeros(len(rows.user), 0, 8), torch.zeros(len(rows.user), 0, 8),
        torch.zeros(len(rows.user), 0, dtype=torch.int64), torch.zeros(len(rows.user), 0, dtype=torch.bool),
    )[:, -1]  # fmt: skip
    expected = made.backbone(*made.read(rows, *looked_up(made, rows)), rows.rated, f)
    torch.testing.assert_close(made(rows, found)[0], expected)


def looked_up(model: LLMCFModel, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    known = model.contents(torch.arange(len(model.items.weight)))
    return known[rows.item], known[rows.past]


def test_gradients(data: Interactions, splits: Splits, thoughts: Thoughts) -> None:
    """All that is learned has one; vectors of texts are not learned."""
    made = model_of(data, splits, thoughts, user_dropout=0.0, item_dropout=0.0, dropout=0.0).train()
    logits, loss = made(*read(made, splits.train[200:400], splits))
    (logits.square().sum() + loss).backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in made.parameters())
    learned = {id(one) for one in made.parameters()}
    assert id(made.texts) not in learned and id(made.told_texts) not in learned
    assert not made.texts.requires_grad and not made.told_texts.requires_grad


def test_users_are_unknown_in_training_alone(data: Interactions, splits: Splits, thoughts: Thoughts) -> None:
    made = model_of(data, splits, thoughts, feature="none", user_dropout=0.99, item_dropout=0.0, dropout=0.0)
    rows, found = read(made, splits.train[200:300], splits)
    known, unknown = made.eval()(rows, found)[0], made(rows._replace(user=rows.user * 0), found)[0]
    told = made.train()(rows, found)[0]
    assert 0.9 < torch.isclose(told, unknown).float().mean() <= 1
    assert not torch.isclose(known, unknown).any()


def test_unknown_users_and_items_have_a_score(model: LLMCFModel, splits: Splits) -> None:
    frame = pd.DataFrame({"user_id": [999, 3], "item_id": [101, 999], "timestamp": [10**9, 10**9]})
    scores = model.score_rows(frame, splits)
    assert np.isfinite(scores).all()
    assert model.score_rows(frame[:0], splits).shape == (0,)
    # An item that nobody rated in train has its text alone, not a vector that was never trained.
    made = model.contents(torch.tensor([model.catalogue.item_ids.index(120) + 1]))
    assert torch.equal(made[0, 0], model.items.weight[0]) and made[0, 1].abs().sum() > 0


def test_saved_and_read(model: LLMCFModel, splits: Splits, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = LLMCFModel.from_pretrained(tmp_path)
    assert np.array_equal(again.score_rows(splits.valid, splits), model.score_rows(splits.valid, splits))
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"width": 8', '"width": 10'))
    with pytest.raises(ValueError, match="model.safetensors does not fit .*config.json: .* tensors of other shapes"):
        LLMCFModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(config.replace('"width": 8', '"width": 10000000'))
    with pytest.raises(ValueError, match="does not fit model.safetensors: more than"):
        LLMCFModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(config.replace('"llmcf"', '"cora"'))
    with pytest.raises(ValueError, match="a model of the method 'cora', expected 'llmcf'"):
        LLMCFModel.from_pretrained(tmp_path)
    (tmp_path / "items.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="not a saved llmcf model, items.parquet missing"):
        LLMCFModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(("feature", "cot"), [
    pytest.param("ict", "llm", marks=pytest.mark.slow), pytest.param("ict", "none", marks=pytest.mark.slow),
    pytest.param("knn", "llm", marks=pytest.mark.slow), pytest.param("none", "llm", marks=pytest.mark.slow),
])  # fmt: skip
def test_exported(data: Interactions, splits: Splits, thoughts: Thoughts, feature: str, cot: str) -> None:
    """The program gives the model's scores, for any number of rows."""
    made = model_of(data, splits, thoughts, feature=feature, cot=cot).eval()
    file = io.BytesIO()
    torch.export.save(made.exported(), file)
    file.seek(0)
    program = torch.export.load(file).module()
    for rows in (1, 37):
        told = read(made, splits.valid[:rows], splits)
        with torch.no_grad():
            torch.testing.assert_close(program(*told[0], *told[1]), made.scores(*told))


def test_the_weighted_label(data: Interactions, splits: Splits, thoughts: Thoughts) -> None:
    made = model_of(data, splits, thoughts, feature="knn").eval()
    labels, alike = torch.tensor([[0, 1, 1, 0]]), torch.tensor([[0.0, 0.5, 0.1, 0.3]])
    there = torch.tensor([[False, True, True, True]])
    weights = np.exp(np.array([5.0, 1.0, 3.0]))
    expected = (weights[:2].sum() / weights.sum() - 0.5) * made.of_knn.weight[:, 0]  # type: ignore[union-attr]
    torch.testing.assert_close(made._weighted(labels, alike, there)[0], expected.float())  # type: ignore[index]
    assert (made._weighted(labels, alike, there & False) == 0).all()  # type: ignore[union-attr]


def test_scoring_knows_no_language_model(model: LLMCFModel) -> None:
    assert not any("transformers" in type(one).__module__ for one in Scorer(model).modules())
