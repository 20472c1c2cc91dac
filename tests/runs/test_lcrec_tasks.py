"""Examples of the tasks: prompts and responses, their targets, and nothing of what is asked about later."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from cora.methods.lcrec import templates
from cora.methods.lcrec.config import LCRecConfig
from cora.methods.lcrec.tasks import IGNORED, TaskEncoder, Tasks, collated

FIRST = 1000  # the token of the first code
CODES = FIRST + torch.arange(2) * 8 + torch.stack([torch.arange(20) % 8, torch.arange(20) // 8], 1)


@pytest.fixture(scope="module")
def encoder(base_folder: Path) -> TaskEncoder:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    return TaskEncoder(tokenizer, CODES, [f"film {item} </s>" for item in range(20)])


@pytest.fixture
def training() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.permutation(20)[:length] for length in (17, 4, 1, 0, 12)]


def test_dense_targets_are_the_codes_and_nothing_of_the_prompt(encoder: TaskEncoder) -> None:
    example, prompt = encoder.dense([3, 9], 0), encoder.sequence([])
    codes = [*CODES[3].tolist(), *CODES[9].tolist()]
    assert example.tokens == [*prompt, *codes[:-1]]
    assert example.labels == [IGNORED] * (len(prompt) - 1) + codes
    assert encoder.sequence([3]) == [*prompt, *CODES[3].tolist()]
    assert encoder.next_item([3], 9, 0).tokens == example.tokens
    assert encoder.next_item([3], 9, 0).labels == [IGNORED] * (len(prompt) + 1) + codes[2:]


def test_titles_are_text_and_end_where_the_model_ends_text(encoder: TaskEncoder) -> None:
    example = encoder.code_to_title(7, 0)
    asked = [label for label in example.labels if label != IGNORED]
    assert asked[:-1] == encoder.titles[7] and asked[-1] == 2  # </s>
    assert 2 not in encoder.titles[7]  # what reads so in a title is none
    example = encoder.title_to_code(7, 1)
    assert [label for label in example.labels if label != IGNORED] == CODES[7].tolist()
    assert "".join(map(str, example.tokens)).count("".join(map(str, encoder.titles[7]))) == 1


def test_histories_beside_titles(encoder: TaskEncoder) -> None:
    example = encoder.history_to_title([1, 2], 3, 0)
    codes = [*CODES[1].tolist(), *CODES[2].tolist()]
    place = example.tokens.index(codes[0])
    assert example.tokens[place : place + 4] == codes
    example = encoder.titles_to_code([1, 2], 3, 0)
    assert [label for label in example.labels if label != IGNORED] == CODES[3].tolist()


@pytest.mark.parametrize("kind", ["SEQREC", "TITLE_TO_CODE", "CODE_TO_TITLE", "HISTORY_TO_TITLE", "TITLES_TO_CODE"])
def test_there_are_four_to_six_templates_of_each_kind_with_one_slot_at_most(kind: str) -> None:
    texts = getattr(templates, kind)
    assert 4 <= len(texts) <= 6 and len(set(texts)) == len(texts)
    slots = {"SEQREC": "", "TITLE_TO_CODE": "{title}", "CODE_TO_TITLE": "{code}"}.get(kind, "{history}")
    for text in texts:
        assert text == text.strip() and text.count("{") == (1 if slots else 0) and slots in text


def test_an_epoch_holds_every_training_item_of_every_user_once(
    encoder: TaskEncoder, training: list[np.ndarray]
) -> None:
    tasks = Tasks(encoder, training, LCRecConfig(tasks=("seqrec",), max_history=4), seed=0)
    cuts = []
    for epoch in range(3):
        examples = [tasks[epoch * tasks.epoch + one] for one in range(tasks.epoch)]
        for user, items in enumerate(training):
            own = sorted((one for one in examples if one.user == user), key=lambda one: one.before)
            asked = [label for one in own for label in one.labels if label != IGNORED]
            assert asked == [token for item in items for token in CODES[item].tolist()]
            assert all(sum(label != IGNORED for label in one.labels) <= 5 * 2 for one in own)
        cuts.append([one.before for one in examples if one.user == 0])
    assert len({tuple(sorted(one)) for one in cuts}) > 1  # cut at other places in other epochs


def test_the_same_seed_gives_the_same_examples_in_whatever_order_they_are_asked_for(
    encoder: TaskEncoder, training: list[np.ndarray]
) -> None:
    config = LCRecConfig(max_history=4)
    one, other = (Tasks(encoder, training, config, seed=0) for _ in range(2))
    assert one.epoch == 2 * 20 + 3 + (17 // 5 + 2 + 1 + 1 + 4)
    places = list(range(2 * one.epoch))
    assert [one[place] for place in places] == [other[place] for place in places[::-1]][::-1]
    assert [one[place] for place in places] != [Tasks(encoder, training, config, seed=1)[place] for place in places]


@pytest.mark.parametrize("targets", ["dense", "response"])
def test_no_example_holds_an_item_that_is_no_training_item_of_its_user(
    encoder: TaskEncoder, training: list[np.ndarray], targets: str
) -> None:
    """As no title and no code of what is asked about later is there, it is in no prompt and no target."""
    tasks = Tasks(encoder, training, LCRecConfig(max_history=4, targets=targets), seed=0)
    seen = set()
    for place in range(3 * tasks.epoch):
        example = tasks[place]
        if example.user is None:
            continue
        tokens = [*example.tokens, example.labels[-1]]
        own = {tuple(CODES[item].tolist()) for item in training[example.user]}
        begins = [at for at, token in enumerate(tokens) if FIRST <= token < FIRST + 8]
        assert {tuple(tokens[at : at + 2]) for at in begins} <= own
        seen.add(example.user)
    assert seen == {0, 1, 2, 4}


def test_a_batch_is_padded_on_the_right(encoder: TaskEncoder) -> None:
    one, other = encoder.dense([1, 2, 3], 0), encoder.title_to_code(4, 0)
    made = collated([one, other])
    for row, example in enumerate((one, other)):
        length = len(example.tokens)
        assert made["input_ids"][row, :length].tolist() == example.tokens
        assert made["labels"][row, :length].tolist() == example.labels
        assert made["attention_mask"][row].tolist() == [1] * length + [0] * (made["input_ids"].shape[1] - length)
        assert (made["labels"][row, length:] == IGNORED).all()
