"""Prompts in two parts: cut where the tokens of the whole are those of the parts, and never a token less."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cora.prompts import DEFAULT_TEXT, PromptDataset, PromptEncoder, PromptTemplate
from cora.prompts.parts import Cut, Parts, cut_for

SHORT = PromptTemplate("Liked {history}. Asked {title}?", no_history="nothing")


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind: a blank belongs to the word behind it."""
    letters = sorted({*pre_tokenizers.ByteLevel.alphabet()})
    merges = [("Ġ", '"'), ("t", "i"), ("Ġ", "t"), ("Ġ", "A")]
    vocabulary = {one: i for i, one in enumerate([*letters, *("".join(pair) for pair in merges), "<s>"])}
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<s>")


def sentence_piece() -> PreTrainedTokenizerFast:
    """Llama 2's kind: a blank is put in front of every text, whatever it begins with."""
    vocabulary = {"<unk>": 0, "<s>": 1} | {one: i + 2 for i, one in enumerate(["▁", *map(chr, range(33, 127)), "é"])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<s>", unk_token="<unk>")


@pytest.mark.parametrize(("make", "blanks"), [(byte_level, "second"), (sentence_piece, "none")])
def test_the_cut_keeps_the_tokens_of_the_whole(make: Any, blanks: str) -> None:
    tokenizer = make()
    for template in (SHORT, PromptTemplate()):
        assert cut_for(Parts(tokenizer), template) == Cut(template.title_at, blanks)
        histories, titles = [["Film", "té"], [], ["A"]], ["A b (2001)", '"', "été"]
        whole = PromptEncoder(tokenizer, template, 512)(histories, titles)
        split = PromptEncoder(tokenizer, template, 512, split=True).encode(histories, titles)
        assert [one.tokens for one in split] == whole
        before = template.text.partition("{title}")[0].rstrip()
        for one, history in zip(split, histories, strict=True):
            liked = ", ".join(f'"{title}"' for title in history) or template.no_history
            assert one.tokens[: one.prefix] == tokenizer(before.format(history=liked))["input_ids"]


def test_what_comes_in_front_of_a_text_comes_once(llama_like: PreTrainedTokenizerFast) -> None:
    (one,) = PromptEncoder(llama_like, SHORT, 512, split=True).encode([["A"]], ["B"])
    assert "".join(llama_like.convert_ids_to_tokens(one.tokens)) == '<s>Liked "A". Asked "B"?'
    assert one.prefix == len('Liked "A". Asked') + 1


def test_a_tokenizer_that_no_cut_suits_has_the_prompt_that_the_parts_are() -> None:
    """Words that reach over every cut: the parts are what is read, together."""
    words = ["Liked nothing. Asked", "?", '"Film"', "<unk>", "<s>"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(' "Film"', "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<s>")
    assert cut_for(Parts(tokenizer), SHORT).blanks == "second"
    (one,) = PromptEncoder(tokenizer, SHORT, 512, split=True).encode([[]], ["Film"])
    front, back = tokenizer("Liked nothing. Asked")["input_ids"], tokenizer(' "Film"?')["input_ids"]
    assert one.tokens == [*front, *back] and one.prefix == len(front) == 1


@pytest.mark.parametrize(
    "text",
    ["{title}: {history}?", "{history}{title}", "a {{b}} {history} {{}} {title} {{c}}", "{history!s:>20}\n{title:>9}"],
)
def test_templates_of_any_form(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    template = PromptTemplate(text)
    whole = PromptEncoder(tokenizer, template, 512)([["A", "B"], []], ["C", "D"])
    split = PromptEncoder(tokenizer, template, 512, split=True).encode([["A", "B"], []], ["C", "D"])
    assert [one.tokens for one in split] == whole
    for one, title in zip(split, "CD", strict=True):
        assert "".join(tokenizer.convert_ids_to_tokens(one.tokens[one.prefix :])).lstrip().startswith(f'"{title}"')


PIECES = st.sampled_from(["</s>", "<s>", "<pad>", "{title}", '"', ", ", "\n", "Film", " "])
TITLE = st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=6).map("".join)


@given(histories=st.lists(st.lists(TITLE, max_size=6), min_size=1, max_size=4), title=TITLE, room=st.integers(0, 99))
def test_split_prompts_are_the_whole_ones_within_every_limit(
    histories: list[list[str]], title: str, room: int, llama_like: PreTrainedTokenizerFast
) -> None:
    """With one token a letter every cut is between tokens: special ones in titles and limits are no matter."""
    whole = PromptEncoder(llama_like, SHORT, 30 + room)
    split = PromptEncoder(llama_like, SHORT, 30 + room, split=True)
    found = split.encode(histories, [title] * len(histories))
    assert [one.tokens for one in found] == whole(histories, [title] * len(histories))
    assert (split.shortened, split.cut) == (whole.shortened, whole.cut)
    alone = {tuple(history): one.prefix for history, one in zip(histories, found, strict=True)}
    for history, one in zip(histories, found, strict=True):
        assert one.prefix == alone[tuple(history)]


def test_rows_of_one_history_begin_alike(tokenizer: PreTrainedTokenizerFast) -> None:
    import pandas as pd

    frame = pd.DataFrame({"user_id": 1, "item_id": [3, 4, 5], "label": 0, "history": [[1, 2], [1, 2], [2]]})
    titles = {1: "A", 2: "B", 3: "C", 4: "Long title", 5: "D"}
    dataset = PromptDataset(frame, titles, tokenizer, split=True)
    rows = [dataset[row] for row in range(3)]
    prefixes = [row["input_ids"][: row["prefix_length"]] for row in rows]
    assert prefixes[0] == prefixes[1] != prefixes[2]
    assert "".join(tokenizer.convert_ids_to_tokens(prefixes[0])) == DEFAULT_TEXT.partition(" {title}")[0].format(
        history='"A", "B"'
    )
    assert "prefix_length" not in PromptDataset(frame, titles, tokenizer)[0]
