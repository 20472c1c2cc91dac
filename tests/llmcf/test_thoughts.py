"""What a text may know, and that what was written is written once."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cora.cli import main
from cora.data.thoughts import Thoughts, spread
from cora.llm.writing import centred, fingerprint, quality, text_vectors
from cora.prompts.thoughts import Decision, item_text, told_by_counts
from cora.runs.prepare import prepare_data
from cora.runs.settings import RunConfig
from cora.runs.thoughts import _by_counts, _decisions, write_thoughts
from cora.runs.writer import Cache
from tests.films import write_ratings
from tests.words import word_tokenizer


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random language model of a few words."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    words = ["<pad>", "</s>", "<unk>", *"This user liked disliked A saw film : , . it".split(), '"']
    tokenizer = word_tokenizer(words, eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ratings(tmp_path_factory.mktemp("data") / "films.csv", np.arange(400) * 250 // 400)


def config(base_folder: Path, ratings: Path) -> RunConfig:
    return RunConfig(data=str(ratings), model=str(base_folder), dtype="float32")


def test_a_prompt_states_the_rows_own_decision_and_earlier_ratings_alone(base_folder: Path, ratings: Path) -> None:
    """Turning the label of every other row of that moment and later, the rows to be scored among them, changes no text;
    turning its own turns the decision."""
    prepared = prepare_data(config(base_folder, ratings))
    frame = prepared.data.frame
    rows = spread(prepared.splits.train, 60)
    expected = _decisions(prepared, rows)
    counted = _by_counts(prepared, rows, expected)
    assert [one.liked for one in expected] == (rows["label"] == 1).tolist()
    seen = 0
    for moment in (60, 120, 180):
        later = frame["timestamp"] >= moment
        other = prepared.data.frame.assign(label=frame["label"].where(~later, 1 - frame["label"]))
        turned = dataclasses.replace(prepared, data=dataclasses.replace(prepared.data, frame=other))
        here = rows[rows["timestamp"] == rows.loc[rows["timestamp"] >= moment, "timestamp"].min()]
        here = (
            here[here["timestamp"] == moment]
            if (here["timestamp"] == moment).any()
            else rows[rows["timestamp"] < moment]
        )
        # The frame of a row that is given is asked of its own label, all else of the turned one.
        found = _decisions(turned, here)
        assert found == [expected[row] for row in here.index]
        assert _by_counts(turned, here, found) == [counted[row] for row in here.index]
        seen += len(here)
        own = _decisions(prepared, here.assign(label=1 - here["label"]))
        for mine, before in zip(own, found, strict=True):
            assert mine.history == before.history and mine.liked != before.liked
            said = {True: "and liked it.", False: "and disliked it."}
            assert said[mine.liked] in mine.told and said[before.liked] not in mine.told
            assert said[before.liked] in before.told
    assert seen > 5


def test_a_history_is_what_was_rated_before(base_folder: Path, ratings: Path) -> None:
    prepared = prepare_data(config(base_folder, ratings))
    frame, rows = prepared.data.frame, spread(prepared.splits.train, 40)
    for row, decision in zip(rows.itertuples(), _decisions(prepared, rows), strict=True):
        before = frame[(frame["user_id"] == row.user_id) & (frame["timestamp"] < row.timestamp)]
        before = before[before["item_id"] != row.item_id][-6:]
        expected = [
            (f"film {item}", label == 1) for item, label in zip(before["item_id"], before["label"], strict=True)
        ]
        assert list(decision.history) == expected


_DECISION = Decision((("Fargo", True), ("Big\nFish", False), ("Babe", True)), "Alien", ("Horror", "Sci-Fi"), False)


def test_the_words() -> None:
    told = _DECISION.told
    assert told.startswith(
        'A user liked "Fargo", "Babe" and disliked "Big Fish". Then the user saw "Alien", which is Horror and Sci-Fi, '
        "and disliked it. Explain this in four short sentences"
    )
    bare = Decision((), "Alien", (), True)
    assert bare.told.startswith('A user has rated nothing yet. Then the user saw "Alien" and liked it.')
    assert _DECISION.said == 'This user disliked "Alien".'
    assert Decision.completed(" likes\n\nfish  too ") == "This user likes fish too"
    assert told_by_counts(_DECISION, [("Horror", 1, 3), ("Sci-Fi", 0, 0)], (4, 9)) == (
        'This user liked 2 of the last 3 films. Of the same genres the user liked Horror 1 of 3. "Alien" is Horror and '
        'Sci-Fi and was liked by 4 of 9 others. This user disliked "Alien".'
    )
    assert item_text("Alien (1979)", ("Horror", "Sci-Fi")) == "Alien (1979): Horror, Sci-Fi"


def test_with_a_chat_template() -> None:
    class Chat:
        chat_template = "there is one"

        def apply_chat_template(self, turns: list, tokenize: bool, add_generation_prompt: bool) -> str:
            assert not tokenize and add_generation_prompt
            return f"<user>{turns[0]['content']}<assistant>"

    assert _DECISION.prompt(Chat()) == f"<user>{_DECISION.told}<assistant>This user"
    assert _DECISION.prompt(object()) == f"{_DECISION.told}\nExplanation: This user"


def written(base_folder: Path, ratings: Path, out: Path, **given: Any) -> Thoughts:
    return write_thoughts(config(base_folder, ratings), 40, out, **{"new_tokens": 4, **given})


def test_the_same_command_goes_on_to_the_same_texts(
    base_folder: Path, ratings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = written(base_folder, ratings, tmp_path / "whole")
    assert whole.rows["llm"].str.startswith("This user ").all()
    assert len(whole.rows) == 40 and whole.items.shape == (30, 16)
    add, calls = Cache.add, []

    def cut(self: Cache, values: dict[str, Any]) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(values)
        add(self, values)

    with monkeypatch.context() as patch:
        patch.setattr(Cache, "add", cut)
        with pytest.raises(KeyboardInterrupt):
            written(base_folder, ratings, tmp_path / "cut")
    cache = tmp_path / "cut" / "cache.jsonl"
    cache.write_text(cache.read_text() + '\n["a line that was cut of')
    again = written(base_folder, ratings, tmp_path / "cut")
    pd.testing.assert_frame_equal(again.rows, whole.rows)
    assert all(torch.equal(again.vectors[kind], whole.vectors[kind]) for kind in ("llm", "template"))
    # Nothing is written or read twice, and what was saved is what was returned.
    before = cache.read_text()
    monkeypatch.setattr("cora.runs.writer.write", None)
    monkeypatch.setattr("cora.runs.writer.text_vectors", lambda *_: iter([]))
    pd.testing.assert_frame_equal(written(base_folder, ratings, tmp_path / "cut").rows, whole.rows)
    assert cache.read_text() == before
    saved = Thoughts.load(tmp_path / "cut")
    pd.testing.assert_frame_equal(saved.rows, whole.rows)
    assert torch.equal(saved.items, whole.items) and saved.item_ids == whole.item_ids


def test_a_text_is_of_its_model_its_prompt_and_its_settings(base_folder: Path, ratings: Path, tmp_path: Path) -> None:
    def texts(**given: Any) -> int:
        written(base_folder, ratings, tmp_path, **given)
        lines = [json.loads(line) for line in (tmp_path / "cache.jsonl").read_text().splitlines() if line]
        return sum(value.startswith("This user ") for _, value in lines)

    first = texts()
    assert texts() == first
    assert texts(new_tokens=5) == 2 * first
    assert texts(new_tokens=5, candidates=2) == 3 * first


def test_the_best_of_several(base_folder: Path, ratings: Path, tmp_path: Path) -> None:
    one, two = (written(base_folder, ratings, tmp_path / f"{n}", candidates=n) for n in (1, 2))
    assert len(two.rows) == 40 and (one.rows["llm"] != two.rows["llm"]).any()


def test_when_time_is_up(base_folder: Path, ratings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without a text are left out, with their vectors."""
    with pytest.raises(ValueError, match="max_minutes: no text was written in 1e-06 minutes"):
        written(base_folder, ratings, tmp_path, max_minutes=1e-6)
    ticks = iter(range(1000))
    monkeypatch.setattr("cora.runs.writer.time.monotonic", lambda: float(next(ticks)))
    found = written(base_folder, ratings, tmp_path, max_minutes=2.5 / 60)
    assert 0 < len(found.rows) < 40
    assert {len(found.rows)} == {len(one) for one in found.vectors.values()}
    assert (np.diff(found.rows["timestamp"]) >= 0).all()


def test_a_template_alone(base_folder: Path, ratings: Path, tmp_path: Path) -> None:
    assert list(written(base_folder, ratings, tmp_path, kind="template").vectors) == ["template"]


@pytest.mark.slow
def test_a_personal_writer(base_folder: Path, ratings: Path, tmp_path: Path) -> None:
    """A finished run writes with the deltas of each row's user and item: other texts than the model alone."""
    trained = [
        "--data", str(ratings), "--model", str(base_folder), "--dtype", "float32", "--dim", "8", "--steps", "2",
        "--batch-size", "8", "--eval-every", "1", "--warmup-steps", "1", "--learning-rate", "0.5",
        "--cora", "r=2", "--cora", "generator=mlp", "--cora", "hidden_size=16",
        "--cora", "answer=[' liked', ' disliked']", "--cora", 'prompt="A user liked {history} . saw {title} :"',
        "--trainer", "use_cpu=true", "--trainer", "disable_tqdm=true", "--trainer", "report_to=[]",
    ]  # fmt: skip
    assert main(["train", "--out", str(tmp_path / "run"), *trained]) == 0
    alone = written(base_folder, ratings, tmp_path / "alone", new_tokens=8)
    own = written(base_folder, ratings, tmp_path / "own", new_tokens=8, writer=tmp_path / "run")
    assert (own.rows["llm"] != alone.rows["llm"]).any()
    assert torch.equal(own.items, alone.items)


def test_vectors_are_means_over_the_tokens_of_the_text(base_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    texts = ["This user liked film 3", "it", "", "A user saw it , 5 7 9 11 13"]
    found = torch.zeros(len(texts), 16)
    for rows, vectors in text_vectors(model, tokenizer, texts, batch_size=3):
        found[rows] = vectors
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"].long()
        with torch.no_grad():
            hidden = model.model(ids)[0][0] if ids.numel() else torch.zeros(1, 16)
        torch.testing.assert_close(vector, hidden.mean(0), atol=1e-5, rtol=1e-5)
    flat = centred(found)
    torch.testing.assert_close(flat.norm(dim=1), torch.ones(len(texts)))
    torch.testing.assert_close(flat, torch.nn.functional.normalize(found - found.mean(0), dim=1))
    assert fingerprint(model) == fingerprint(AutoModelForCausalLM.from_pretrained(base_folder))
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    assert fingerprint(model) != fingerprint(AutoModelForCausalLM.from_pretrained(base_folder))


def test_quality() -> None:
    v, asked, said = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    text = "one two three four"
    assert quality(text, v, asked, said) == pytest.approx((1 + 1 + 0.5 + 4 / 40) / 4)
    assert quality("la la la la", v, asked, said) == pytest.approx((0.5 + 1 + 0.5 + 4 / 40) / 4)
    assert quality(text, -v, asked, said) < quality(text, v, asked, said)
    assert quality("too short", v, asked, said) == 0


@pytest.mark.parametrize(("given", "message"), [
    (dict(rows=0), "rows: expected a whole number from 1, got 0"),
    (dict(rows=321), "rows: expected 1 to 320, the training rows there are, got 321"),
    (dict(kind="none"), "cot: expected one of llm, template, got 'none'"),
    (dict(new_tokens=0), "new_tokens: expected a whole number from 1, got 0"),
    (dict(candidates=0), "candidates: expected a whole number from 1, got 0"),
    (dict(max_minutes=0), "max_minutes: expected a positive number, got 0"),
])  # fmt: skip
def test_what_is_refused(base_folder: Path, ratings: Path, tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        write_thoughts(config(base_folder, ratings), **{"rows": 10, "out": tmp_path / "x", **given})
    assert str(error.value) == message and not (tmp_path / "x").exists()


def test_a_folder_of_other_things(base_folder: Path, ratings: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other things, notes.txt for example"):
        written(base_folder, ratings, tmp_path)
    with pytest.raises(FileExistsError, match="out: .*notes.txt is a file"):
        written(base_folder, ratings, tmp_path / "notes.txt")
    with Cache(tmp_path / "open"), pytest.raises(FileExistsError, match="another process writes in"):
        written(base_folder, ratings, tmp_path / "open")


def test_files_that_do_not_fit(thoughts: Thoughts, tmp_path: Path) -> None:
    thoughts.save(tmp_path)
    rows = tmp_path / "thoughts.parquet"
    good = rows.read_bytes()
    for change, message in (
        (lambda frame: frame.iloc[::-1], "expected rows in time order with labels 0 and 1"),
        (lambda frame: frame.assign(label=2), "expected rows in time order with labels 0 and 1"),
        (lambda frame: frame.drop(columns="label"), "missing column label"),
        (lambda frame: frame[:-1], "expected a vector for each row of"),
        (lambda frame: frame.drop(columns=["llm", "template"]), "expected a vector for each row of"),
    ):
        change(thoughts.rows).to_parquet(rows, index=False)
        with pytest.raises(ValueError, match=message):
            Thoughts.load(tmp_path)
    rows.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="thoughts.parquet: not a parquet file"):
        Thoughts.load(tmp_path)
    rows.write_bytes(good)
    bad = {kind: one.clone() for kind, one in thoughts.vectors.items()}
    bad["llm"][3, 2] = float("nan")
    dataclasses.replace(thoughts, vectors=bad).save(tmp_path)
    with pytest.raises(ValueError, match="llm: expected finite float32"):
        Thoughts.load(tmp_path)
    (tmp_path / "items.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="is no folder of `cora thoughts`, items.parquet missing"):
        Thoughts.load(tmp_path)


def test_rows_are_spread_over_time() -> None:
    train = pd.DataFrame({"timestamp": range(101)})
    assert spread(train, 5)["timestamp"].tolist() == [0, 25, 50, 75, 100]
    assert spread(train, 101)["timestamp"].tolist() == list(range(101))
