"""Titles are text, whatever they hold, and long ones cost as much as their length."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from cora.prompts import PromptEncoder, PromptTemplate
from cora.prompts.template import one_line

SHORT = PromptTemplate("Liked {history}. {title}?", no_history="nothing")


def written(tokens: list[int], tokenizer: PreTrainedTokenizerFast) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(tokens))


@pytest.mark.parametrize("title", ["</s>", "a<s>b</s></s>", "<s>", "<</s>/s>", "{title}</s>{history}"])
def test_special_tokens_in_titles_are_text(
    title: str, tokenizer: PreTrainedTokenizerFast, llama_like: PreTrainedTokenizerFast
) -> None:
    text = f'Liked "A", "{title}". "{title}"?'
    for one, front in ((tokenizer, []), (llama_like, [llama_like.bos_token_id])):
        encoder = PromptEncoder(one, SHORT, 512)
        among = encoder([["B"], ["A", title], []], ["A", title, "C"])
        assert among[1] == [*front, *one.convert_tokens_to_ids(list(text))]
        assert among[0] == encoder([["B"]], ["A"])[0] and among[2] == encoder([[]], ["C"])[0]
    assert tokenizer("</s>")["input_ids"] == [tokenizer.eos_token_id], "the tokenizer is as it was"


def test_special_tokens_of_the_template_stay(
    tokenizer: PreTrainedTokenizerFast, llama_like: PreTrainedTokenizerFast
) -> None:
    template = PromptTemplate("<s>Liked {history}</s>. {title}?", no_history="<s>nothing")
    for one in (tokenizer, llama_like):
        plain = PromptEncoder(one, template, 512)([["A"], []], ["B", "B"])
        expected = [one(text)["input_ids"] for text in ('<s>Liked "A"</s>. "B"?', '<s>Liked <s>nothing</s>. "B"?')]
        assert plain == [ids[:-1] if one is llama_like else ids for ids in expected]
        (injected,) = PromptEncoder(one, template, 512)([["A</s>"]], ["<s>B"])
        (ordinary,) = PromptEncoder(one, template, 512)([["A1234"]], ["123B"])
        marks = [token in one.all_special_ids for token in injected]
        assert marks == [token in one.all_special_ids for token in ordinary]
        assert written([*injected], one) == written([*ordinary], one).replace("1234", "</s>").replace("123", "<s>")


def test_an_unknown_letter_is_no_injected_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.unk_token = "<unk>"
    (tokens,) = PromptEncoder(tokenizer, SHORT, 512)([["Ā"]], ["<unk>"])
    assert tokens == [tokenizer.unk_token_id if letter == "Ā" else tokenizer.convert_tokens_to_ids(letter)
                      for letter in 'Liked "Ā". "<unk>"?']  # fmt: skip


@pytest.mark.parametrize(
    ("title", "line"),
    [
        ("Alien (1979)", "Alien (1979)"),
        ("a  b ", "a  b "),
        ("a\u00a0b \u200b", "a\u00a0b \u200b"),
        ("a\nb", "a b"),
        ("a \r\n\t b", "a b"),
        ("\ufeffa\x0b\x0c\x85\u2028\u2029b\0", "\ufeffa b"),
        ("\n a \n", "a"),
        ("\r\n", ""),
    ],
)
def test_titles_are_one_line(title: str, line: str) -> None:
    assert one_line(title) == line
    assert SHORT.render([title], title) == f'Liked "{line}". "{line}"?'


def test_formats_and_braces_of_the_template() -> None:
    template = PromptTemplate("{{x}} {history!s} {title:>7}")
    assert template.render(["{y}"], "A") == '{x} "{y}"     "A"'


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer, self.characters = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, text: Any, **options: Any) -> Any:
        self.characters += sum(map(len, [text] if isinstance(text, str) else text))
        return self.tokenizer(text, **options)


def test_long_histories_and_titles_are_read_a_few_times_at_most(tokenizer: PreTrainedTokenizerFast) -> None:
    counting = Counting(tokenizer)
    encoder = PromptEncoder(counting, SHORT, 100)  # type: ignore[arg-type]
    history = [f"Film {number}" for number in range(20_000)]
    (tokens,) = encoder([history], ["Alien"])
    assert written(tokens, tokenizer).endswith('"Film 19998", "Film 19999". "Alien"?') and 86 <= len(tokens) <= 100
    (tokens,) = encoder([history], ["x" * 300_000])
    assert written(tokens, tokenizer) == f'Liked nothing. "{"x" * 82}"?'
    assert counting.characters < 5 * (2 * 12 * len(history) + 300_000)
    assert (encoder.shortened, encoder.cut) == (2, 1)


def test_as_many_titles_stay_as_fit_whatever_they_cost_together(tokenizer: PreTrainedTokenizerFast) -> None:
    titles = ["a" * (number % 7 + 1) for number in range(40)]
    for max_length in range(18, 120):
        (tokens,) = PromptEncoder(tokenizer, SHORT, max_length)([titles], ["t"])
        fitting = [kept for kept in range(41) if len(SHORT.render(titles[40 - kept :], "t")) <= max_length]
        title = "t" if fitting else ""
        assert written(tokens, tokenizer) == SHORT.render(titles[40 - max(fitting, default=0) :], title)


PIECES = st.sampled_from(["</s>", "<s>", "<pad>", "{title}", "{", '"', ", ", "\n", "Film", " "])
TITLE = st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=6).map("".join)


@given(histories=st.lists(st.lists(TITLE, max_size=6), min_size=1, max_size=4), title=TITLE, room=st.integers(0, 150))
def test_prompts_are_those_of_the_definition(
    histories: list[list[str]], title: str, room: int, llama_like: PreTrainedTokenizerFast
) -> None:
    """One token a letter and one in front: of titles, the most that fit; of a title that alone does not, what fits."""
    max_length = 19 + room
    found = PromptEncoder(llama_like, SHORT, max_length)(histories, [title] * len(histories))
    for history, tokens in zip(histories, found, strict=True):
        whole = [SHORT.render(history[start:], title) for start in range(len(history) + 1)]
        cut = [SHORT.render([], title[:end]) for end in range(len(title) - 1, -1, -1)]
        text = next(text for text in [*whole, *cut] if len(text) < max_length)
        known = llama_like.get_vocab()
        assert tokens == [llama_like.bos_token_id, *(known.get(letter, known["<unk>"]) for letter in text)]


def test_an_order_says_which_titles_stay(tokenizer: PreTrainedTokenizerFast) -> None:
    titles, order = ["aa", "b", "cccc", "dd", "e", "ffffff"], [3, 0, 5, 1, 4, 2]
    for max_length in range(18, 70):
        (one,) = PromptEncoder(tokenizer, SHORT, max_length).encode([titles], ["t"], [order])
        kept = [[titles[place] for place in sorted(order[:count])] for count in range(7)]
        fitting = [SHORT.render(some, "t") for some in kept if len(SHORT.render(some, "t")) <= max_length]
        assert written(one.tokens, tokenizer) == (fitting[-1] if fitting else SHORT.render([], ""))


def test_a_history_costs_no_more_the_longer_it_is(tokenizer: PreTrainedTokenizerFast) -> None:
    """Beyond as many titles as there may be tokens none is read, the best of them being anywhere."""
    read = []
    for length in (100, 1_000, 10_000):
        counting = Counting(tokenizer)
        encoder = PromptEncoder(counting, SHORT, 90)  # type: ignore[arg-type]
        started, middle = counting.characters, length // 2
        order = [middle + (place if place % 2 else -place) // 2 for place in range(length)]
        (one,) = encoder.encode([[f"{number:05}" for number in range(length)]], ["Alien"], [order])
        assert written(one.tokens, tokenizer).startswith(f'Liked "{middle - 3:05}", ')
        read.append(counting.characters - started)
    assert max(read) <= 1.05 * min(read)
