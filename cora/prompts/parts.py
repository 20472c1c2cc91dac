"""Parts of prompts as tokens: with the control tokens of the template alone, and cut where a title begins."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from cora.prompts.template import Piece, PromptTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Titles and histories on which ways to cut are tried.
_TITLES = ("Film", "12 Years (2013)", "été, l'", " a", "")
_HISTORIES: tuple[list[str], ...] = ([], ["Film"])


class Parts:
    """Pieces of a template, filled in, as the tokens of their text joined."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        special = {token.content: one for one, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special_ids = {*special.values(), *tokenizer.all_special_ids}
        self._special = special
        self._split = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
        # How many special tokens there are without any title, by begins and the texts of the template.
        self._own: dict[tuple[bool, str], int] = {}

    def tokens(self, parts: Sequence[list[Piece]], begins: bool) -> list[list[int]]:
        """The tokens of every part; of one that begins a prompt with what the tokenizer puts in front of a text."""
        # A part that many prompts share is tokenised once.
        joined = ["".join(text for text, _ in pieces) for pieces in parts]
        first = {text: row for row, text in reversed(list(enumerate(joined)))}
        found = dict(zip(first, self._encoded(list(first), begins), strict=True))
        for text, row in first.items():
            if self._count(found[text]) != self._expected(parts[row], begins):
                found[text] = self._with_titles_as_text(parts[row], begins)
        return [found[text] for text in joined]

    def as_texts(self, texts: list[str]) -> list[list[int]]:
        """The tokens of texts in which nothing is a special token, with none around."""
        found = self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [list(one) for one in found]

    def _encoded(self, texts: list[str], begins: bool) -> list[list[int]]:
        if not texts:
            return []
        return [self._without_end(one) for one in self._tokenizer(texts, add_special_tokens=begins)["input_ids"]]

    def _expected(self, pieces: list[Piece], begins: bool) -> int:
        bare = "".join('""' if is_title else text for text, is_title in pieces)
        if (begins, bare) not in self._own:
            self._own[begins, bare] = self._count(self._encoded([bare], begins)[0])
        return self._own[begins, bare]

    def _count(self, tokens: list[int]) -> int:
        return sum(map(self._special_ids.__contains__, tokens))

    def _with_titles_as_text(self, pieces: list[Piece], begins: bool) -> list[int]:
        """The part in pieces: special tokens of the template as such, all between them as text."""
        texts = [""]
        for text, is_title in pieces:
            start = 0
            for found in self._split.finditer("" if is_title else text):
                texts[-1] += text[start : found.start()]
                texts += [found[0], ""]
                start = found.end()
            texts[-1] += text[start:]
        if len(texts) == 1:
            whole = self._tokenizer(texts[0], add_special_tokens=begins, split_special_tokens=True)
            return self._without_end(whole["input_ids"])
        plain = [[self._special[text]] if row % 2 else self.as_texts([text])[0] for row, text in enumerate(texts)]
        inside = [one for tokens in plain for one in tokens]
        if not begins:
            return inside
        # What the tokenizer puts in front of a text, and behind it but for the end.
        around, sample = self._encoded(["x"], True)[0], self.as_texts(["x"])[0]
        start = next(at for at in range(len(around)) if around[at : at + len(sample)] == sample)
        return [*around[:start], *inside, *around[start + len(sample) :]]

    def _without_end(self, tokens: list[int]) -> list[int]:
        return tokens[:-1] if tokens and tokens[-1] == self._tokenizer.eos_token_id else tokens


class Cut(NamedTuple):
    """Where a prompt becomes two parts: in front of the piece `at`, the title asked about.

    The blanks in front of it begin the second part ("second"), end the first ("first"), or are left out ("none").
    """

    at: int
    blanks: str

    def halves(self, pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
        text = pieces[self.at - 1][0]
        kept = text if self.blanks == "first" else text.rstrip()
        moved = text[len(text.rstrip()) :] if self.blanks == "second" else ""
        return [*pieces[: self.at - 1], (kept, False)], [(moved, False), *pieces[self.at :]]


def cut_for(parts: Parts, template: PromptTemplate) -> Cut:
    """The cut whose two parts, tokenised each on its own, are the tokens of the whole prompt.

    Where the blanks in front of the title have to go for that depends on the tokenizer: with the title for GPT-2's
    kind, which writes a blank into the word behind it; nowhere for SentencePiece's, which puts one in front of every
    text. With a tokenizer that no cut suits, the blanks go with the title, and the prompt is what the parts are.
    """
    cuts = [Cut(template.title_at, blanks) for blanks in ("second", "first", "none")]
    prompts = [template.pieces(history, title) for history in _HISTORIES for title in _TITLES]
    whole = parts.tokens(prompts, begins=True)
    for cut in cuts:
        before, after = zip(*map(cut.halves, prompts), strict=True)
        halves = zip(parts.tokens(before, begins=True), parts.tokens(after, begins=False), strict=True)
        if [[*front, *back] for front, back in halves] == whole:
            return cut
    return cuts[0]
