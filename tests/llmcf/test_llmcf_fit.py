"""The fit: it learns, it is repeatable, what it refuses; and the distillation of a teacher."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from cora.data import Interactions, Splits
from cora.methods.llmcf.config import LLMCFConfig
from cora.methods.llmcf.fitting import distilled, fit, teacher_targets

_QUICK: dict[str, Any] = dict(width=8, hidden=(16, 8), max_history=8, batch_size=64, learning_rate=1e-2, epochs=2)


def config(folder: Path, **given: Any) -> LLMCFConfig:
    return LLMCFConfig(**{"thoughts": str(folder), "backbone": "deepfm", **_QUICK, **given})


def test_it_learns_tastes(data: Interactions, splits: Splits, folder: Path) -> None:
    model, history = fit(splits, data, config(folder, epochs=5), 0)
    steps = -(-len(splits.train) // 64)
    assert [entry["step"] for entry in history] == [steps * (epoch + 1) for epoch in range(len(history))]
    best = max(entry["eval_auc"] for entry in history)
    assert best > 0.7
    assert roc_auc_score(splits.valid["label"], model.score_rows(splits.valid, splits)) == pytest.approx(best, abs=1e-9)


def test_a_seed_gives_the_same_bits_and_another_seed_others(data: Interactions, splits: Splits, folder: Path) -> None:
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    first, again, other = (fit(splits, data, config(folder, epochs=1), seed)[0] for seed in (1, 1, 2))
    scores = [one.score_rows(splits.valid, splits) for one in (first, again, other)]
    assert np.array_equal(scores[0], scores[1]) and not np.allclose(scores[0], scores[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_texts_of_other_examples(data: Interactions, splits: Splits, folder: Path) -> None:
    """Shuffled texts are the same texts, at other examples, whatever the seed."""
    given, shuffled, again = (
        fit(splits, data, config(folder, epochs=1, cot=cot), seed)[0].told.texts
        for cot, seed in (("llm", 0), ("shuffled", 0), ("shuffled", 1))
    )
    assert given is not None and shuffled is not None and again is not None
    assert torch.equal(shuffled, again) and not torch.equal(given, shuffled)
    assert {tuple(one) for one in given.tolist()} == {tuple(one) for one in shuffled.tolist()}


def test_a_thought_of_a_row_outside_train_is_refused(data: Interactions, splits: Splits, folder: Path) -> None:
    for other in (splits.train.assign(label=1 - splits.train["label"]), splits.train[: len(splits.train) // 2]):
        with pytest.raises(
            ValueError, match="rows in .* are not among the training rows; write them for the same data"
        ):
            fit(Splits(other, splits.valid, splits.test), data, config(folder), 0)


def test_a_kind_of_text_that_is_not_there(data: Interactions, splits: Splits, thoughts: Any, tmp_path: Path) -> None:
    rows, vectors = thoughts.rows.drop(columns="llm"), {"template": thoughts.vectors["template"]}
    dataclasses.replace(thoughts, rows=rows, vectors=vectors).save(tmp_path)
    for cot in ("llm", "shuffled"):
        with pytest.raises(ValueError, match=f"cot: {tmp_path} has no texts of the kind llm, only template"):
            fit(splits, data, config(tmp_path, cot=cot), 0)
    fit(splits, data, config(tmp_path, cot="template", epochs=1), 0)


def test_divergence_is_said(data: Interactions, splits: Splits, folder: Path) -> None:
    with pytest.raises(ValueError, match="training diverged in epoch 1: .*; try a tenth of the learning_rate, 1e"):
        fit(splits, data, config(folder, learning_rate=1e30), 0)


def test_a_student_that_is_its_teacher_has_no_gradient() -> None:
    logits = torch.randn(9, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 2, (9,)).double()
    loss = functional.binary_cross_entropy_with_logits(logits, labels)
    (loss + distilled(logits, labels, logits.detach().sigmoid())).backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits))


def test_the_shares_of_label_and_teacher() -> None:
    """Of rows that the teacher has not scored the label alone counts."""
    logits, labels = torch.randn(6).double(), torch.tensor([0.0, 1, 1, 0, 1, 0]).double()
    taught = torch.tensor([0.2, 0.9, float("nan"), 0.6, float("nan"), 0.1]).double()
    found = functional.binary_cross_entropy_with_logits(logits, labels) + 0.3 * distilled(logits, labels, taught)
    p = logits.sigmoid()
    of_label, of_teacher = (
        -(one * p.log() + (1 - one) * (1 - p).log()) for one in (labels, torch.where(taught.isnan(), labels, taught))
    )
    torch.testing.assert_close(found, (0.7 * of_label + 0.3 * of_teacher).mean())


def teacher(splits: Splits, path: Path) -> pd.DataFrame:
    scored = splits.train[["user_id", "item_id", "timestamp"]].iloc[::-1][:900]
    random = np.random.default_rng(0)
    yes, no = random.normal(size=(2, len(scored)))
    scored = scored.assign(llm=yes - no, yes=yes, no=no)
    scored.to_parquet(path)
    return scored


def test_the_target_is_one_softmax(splits: Splits, folder: Path, tmp_path: Path) -> None:
    """At temperature 1 the language model's own probability of yes, of each row by its ids and its time."""
    scored = teacher(splits, tmp_path / "scores.parquet")
    for temperature in (1.0, 2.5):
        settings = config(folder, teacher=str(tmp_path / "scores.parquet"), teacher_column="llm",
                          teacher_temperature=temperature)  # fmt: skip
        found = teacher_targets(settings, splits.train)
        weights = np.exp(scored[["yes", "no"]].to_numpy() / temperature)
        expected = scored.assign(q=weights[:, 0] / weights.sum(1))
        merged = splits.train.merge(expected, how="left", on=["user_id", "item_id", "timestamp"])
        np.testing.assert_allclose(found.numpy(), merged["q"].to_numpy(), rtol=1e-5)
    assert found.isnan().sum() == len(splits.train) - len(scored)


def test_a_taught_model_follows_its_teacher(data: Interactions, splits: Splits, folder: Path, tmp_path: Path) -> None:
    """A teacher who says the opposite of the labels, and is all that is listened to, is believed."""
    signs = 1 - 2.0 * splits.train["label"]
    splits.train.assign(cora=3 * signs).to_parquet(tmp_path / "scores.parquet")
    settings = config(folder, teacher=str(tmp_path / "scores.parquet"), teacher_weight=1.0, epochs=1, feature="none")
    model, history = fit(splits, data, settings, 0)
    assert history[-1]["eval_auc"] < 0.4


def test_teachers_that_are_refused(data: Interactions, splits: Splits, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    with pytest.raises(FileNotFoundError, match="teacher: there is no file"):
        fit(splits, data, config(folder, teacher=str(path)), 0)
    path.write_text("no table")
    with pytest.raises(ValueError, match="teacher: .* is not a parquet file"):
        fit(splits, data, config(folder, teacher=str(path)), 0)
    scored = teacher(splits, path)
    with pytest.raises(ValueError, match="teacher: .* has no column cora; found"):
        fit(splits, data, config(folder, teacher=str(path)), 0)
    scored.assign(timestamp=-1).to_parquet(path)
    with pytest.raises(ValueError, match="has scored none of the"):
        fit(splits, data, config(folder, teacher=str(path), teacher_column="llm"), 0)
    scored.assign(llm=np.inf).to_parquet(path)
    with pytest.raises(ValueError, match="holds scores that are not finite"):
        fit(splits, data, config(folder, teacher=str(path), teacher_column="llm"), 0)


@pytest.mark.parametrize(("given", "message"), [
    (dict(backbone="dnn"), "backbone: expected one of deepfm, xdeepfm, dcnv2, autoint, din, got 'dnn'"),
    (dict(thoughts=None), "thoughts: feature ict needs a folder that `cora thoughts` wrote, got None"),
    (dict(cot="prose"), "cot: expected one of llm, template, shuffled, none, got 'prose'"),
    (dict(k=3), "k: expected an even number, got 3"),
    (dict(k=0), "k: expected a whole number from 2, got 0"),
    (dict(width=7), "width: expected an even number, got 7"),
    (dict(hidden=[]), "hidden: empty"),
    (dict(hidden=[0]), "hidden: expected widths from 1, got"),
    (dict(user_dropout=1.0), "user_dropout: expected a number from 0 up to, not including, 1"),
    (dict(learning_rate=0), "learning_rate: expected a positive number from 0, got 0"),
    (dict(teacher_weight=1.5), "teacher_weight: expected a share from 0 to 1, got 1.5"),
    (dict(text_weight=-1), "text_weight: expected a number from 0, got -1"),
])  # fmt: skip
def test_settings_that_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        LLMCFConfig(**{"thoughts": "somewhere", **given})
    assert str(error.value).startswith(message)
