import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast
from transformers.trainer_pt_utils import LengthGroupedSampler

from cora.prompts import PromptCollator, PromptDataset, PromptTemplate

TITLES = {10: "Alien (1979)", 11: "Brazil (1985)", 12: "Casablanca (1942)", 13: "Braces {history}"}
SHORT = PromptTemplate("Liked {history}. {title}?", no_history="nothing")


@pytest.fixture
def frame() -> pd.DataFrame:
    histories = [[], [10], [10, 11, 12]]
    return pd.DataFrame({"user_id": [1, 2, 1], "item_id": [12, 11, 10], "label": [1, 0, 1], "history": histories})


def test_default_prompt() -> None:
    assert PromptTemplate().render(["Alien (1979)", "Brazil (1985)"], "Casablanca (1942)") == (
        '#Question: A user has given high ratings to the following movies: "Alien (1979)", "Brazil (1985)". Leverage '
        'the information to predict whether the user would enjoy the movie titled "Casablanca (1942)"? Answer with '
        '"Yes" or "No". \n#Answer:'
    )
    assert "following movies: none so far. Leverage" in PromptTemplate().render([], "Alien (1979)")


def test_braces_in_a_title_are_text() -> None:
    assert SHORT.render(["A {title} B"], "Braces {history}") == 'Liked "A {title} B". "Braces {history}"?'


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("Would they like {title}?", r"expected the fields \{history\} and \{title\} once each, got \['title'\]"),
        ("{history} {history} {title}", "once each, got"),
        ("{history} {title} {user}", "once each, got"),
        ("{history} {title} {", "text: not a template"),
    ],
)
def test_wrong_template(text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        PromptTemplate(text)


def test_items_of_the_dataset(frame: pd.DataFrame, tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = PromptDataset(frame, TITLES, tokenizer, SHORT)
    texts = [
        'Liked nothing. "Casablanca (1942)"?',
        'Liked "Alien (1979)". "Brazil (1985)"?',
        'Liked "Alien (1979)", "Brazil (1985)", "Casablanca (1942)". "Alien (1979)"?',
    ]
    assert len(dataset) == 3
    assert [written(dataset[i]["input_ids"], tokenizer) for i in range(3)] == texts
    assert dataset.lengths.tolist() == [len(text) for text in texts]
    row = dataset[1]
    assert {**row, "input_ids": None} == {"input_ids": None, "user_id": 2, "item_id": 11, "label": 0, "length": 38}
    assert all(type(token) is int for token in row["input_ids"])


def test_chunks_do_not_show(frame: pd.DataFrame, tokenizer: PreTrainedTokenizerFast) -> None:
    many = pd.concat([frame] * 700, ignore_index=True)
    dataset = PromptDataset(many, TITLES, tokenizer, SHORT)
    few = PromptDataset(frame, TITLES, tokenizer, SHORT)
    for i in (0, 998, 999, 1000, 1001, 2099):
        assert dataset[i] == few[i % 3]


def test_bos_stays_and_eos_goes(frame: pd.DataFrame, llama_like: PreTrainedTokenizerFast) -> None:
    tokens = PromptDataset(frame, TITLES, llama_like, SHORT)[0]["input_ids"]
    assert tokens[0] == llama_like.bos_token_id
    assert written(tokens[1:], llama_like) == 'Liked nothing. "Casablanca (1942)"?'


@pytest.mark.filterwarnings("ignore:.*prompts were longer")
@pytest.mark.parametrize(
    ("max_length", "liked"),
    [
        (75, '"Alien (1979)", "Brazil (1985)", "Casablanca (1942)"'),
        (74, '"Brazil (1985)", "Casablanca (1942)"'),
        (58, '"Casablanca (1942)"'),
        (41, "nothing"),
        (35, "nothing"),
    ],
)
def test_the_oldest_titles_go_first(
    frame: pd.DataFrame, tokenizer: PreTrainedTokenizerFast, max_length: int, liked: str
) -> None:
    dataset = PromptDataset(frame, TITLES, tokenizer, SHORT, max_length=max_length)
    assert written(dataset[2]["input_ids"], tokenizer) == f'Liked {liked}. "Alien (1979)"?'
    assert written(dataset[0]["input_ids"], tokenizer) == 'Liked nothing. "Casablanca (1942)"?'


@pytest.mark.filterwarnings("ignore:.*prompts were longer")
@pytest.mark.parametrize(("max_length", "title"), [(34, "Casablanca (1942"), (28, "Casablanca"), (19, "C"), (18, "")])
def test_too_long_without_history_the_title_loses_its_end(
    frame: pd.DataFrame, tokenizer: PreTrainedTokenizerFast, max_length: int, title: str
) -> None:
    dataset = PromptDataset(frame, TITLES, tokenizer, SHORT, max_length=max_length)
    assert written(dataset[0]["input_ids"], tokenizer) == f'Liked nothing. "{title}"?'


def test_a_limit_that_the_template_alone_is_beyond(frame: pd.DataFrame, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="max_length: .* with neither history nor title has 18 tokens, more than 17"):
        PromptDataset(frame, TITLES, tokenizer, SHORT, max_length=17)


def test_prompts_that_are_shortened_are_counted_in_one_line(
    frame: pd.DataFrame, tokenizer: PreTrainedTokenizerFast, recwarn: pytest.WarningsRecorder
) -> None:
    PromptDataset(frame, TITLES, tokenizer, SHORT, max_length=75)
    assert not recwarn.list
    PromptDataset(pd.concat([frame] * 400, ignore_index=True), TITLES, tokenizer, SHORT, max_length=34)
    (said,) = [str(one.message) for one in recwarn.list]
    assert said.startswith("1200 of 1200 prompts were longer than max_length, 34 tokens") and "of 400 the end" in said


@pytest.mark.parametrize("column", ["user_id", "item_id", "label", "history"])
def test_missing_column(frame: pd.DataFrame, tokenizer: PreTrainedTokenizerFast, column: str) -> None:
    with pytest.raises(ValueError, match=f"frame: missing column {column}; found"):
        PromptDataset(frame.drop(columns=column), TITLES, tokenizer)


def test_no_rows(frame: pd.DataFrame, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="frame: no rows"):
        PromptDataset(frame[:0], TITLES, tokenizer)


def test_missing_title(frame: pd.DataFrame, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"titles: 1 items of the frame have no title, for example \[11\]"):
        PromptDataset(frame, {10: "Alien", 12: "Casablanca"}, tokenizer)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches(frame: pd.DataFrame, tokenizer: PreTrainedTokenizerFast, side: str) -> None:
    dataset = PromptDataset(frame, TITLES, tokenizer, SHORT)
    (batch,) = DataLoader(dataset, batch_size=3, collate_fn=PromptCollator(tokenizer, side))
    assert set(batch) == {"input_ids", "attention_mask", "user_ids", "item_ids", "labels"}
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, dataset.lengths.max())
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
    for i in range(3):
        length = dataset.lengths[i]
        kept = slice(0, length) if side == "right" else slice(-length, None)
        assert batch["input_ids"][i, kept].tolist() == dataset[i]["input_ids"]
        assert batch["attention_mask"][i, kept].all() and batch["attention_mask"][i].sum() == length
        assert (batch["input_ids"][i][batch["attention_mask"][i] == 0] == tokenizer.pad_token_id).all()
    assert batch["user_ids"].tolist() == [1, 2, 1] and batch["user_ids"].dtype == torch.int64
    assert batch["item_ids"].tolist() == [12, 11, 10]
    assert batch["labels"].tolist() == [1.0, 0.0, 1.0] and batch["labels"].dtype == torch.float32


def test_text_ids_come_as_lists(frame: pd.DataFrame, tokenizer: PreTrainedTokenizerFast) -> None:
    frame["user_id"] = ["ann", "bo", "ann"]
    dataset = PromptDataset(frame, TITLES, tokenizer, SHORT)
    batch = PromptCollator(tokenizer)([dataset[0], dataset[1]])
    assert batch["user_ids"] == ["ann", "bo"]
    assert batch["item_ids"].tolist() == [12, 11]


def test_without_a_pad_token_the_end_token_pads(frame: pd.DataFrame, llama_like: PreTrainedTokenizerFast) -> None:
    dataset = PromptDataset(frame, TITLES, llama_like, SHORT)
    batch = PromptCollator(llama_like)([dataset[0], dataset[2]])
    assert batch["input_ids"][0, 0] == llama_like.eos_token_id and batch["attention_mask"][0, 0] == 0


def test_wrong_collator(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="padding_side: expected 'left' or 'right', got 'both'"):
        PromptCollator(tokenizer, "both")
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a pad token nor an end-of-text token"):
        PromptCollator(tokenizer)


def test_the_trainer_can_group_by_length(frame: pd.DataFrame, tokenizer: PreTrainedTokenizerFast) -> None:
    many = pd.concat([frame] * 20, ignore_index=True)
    dataset = PromptDataset(many, TITLES, tokenizer, SHORT)
    torch.manual_seed(0)
    order = list(LengthGroupedSampler(4, dataset=dataset, model_input_name=tokenizer.model_input_names[0]))
    assert sorted(order) == list(range(60))

    def padding(lengths: np.ndarray) -> int:
        return int((lengths.reshape(15, 4).max(1, keepdims=True) - lengths.reshape(15, 4)).sum())

    assert padding(dataset.lengths[order]) < 0.5 * padding(dataset.lengths)


def written(tokens: list[int], tokenizer: PreTrainedTokenizerFast) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(tokens))
