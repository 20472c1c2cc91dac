"""The text by which a language model is asked why a user liked or disliked an item, and the same told by counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cora.prompts.template import one_line

_ASKED = (
    "Explain this in four short sentences: what the user likes, judging by the history; what {title} offers; how the "
    "two fit or do not fit; and whether the user looked for something new. Name no other facts."
)
_BEGUN = "This user"  # what the model's text goes on from, so that it starts at once


@dataclass(frozen=True)
class Decision:
    """One training row as a text tells it: what its user rated before, oldest first, and the row's own decision.

    history: titles, and for each whether it was liked; title, genres: of the row's item; liked: the row's label.
    """

    history: tuple[tuple[str, bool], ...]
    title: str
    genres: tuple[str, ...]
    liked: bool

    @property
    def said(self) -> str:
        """The decision as one sentence."""
        return f'This user {"liked" if self.liked else "disliked"} "{one_line(self.title)}".'

    @property
    def told(self) -> str:
        """What the language model is told and asked."""
        liked, disliked = (_listed([name for name, one in self.history if one is wanted]) for wanted in (True, False))
        history = " and ".join(f"{word} {names}" for word, names in (("liked", liked), ("disliked", disliked)) if names)
        title = f'"{one_line(self.title)}"'
        of = f", which is {_series(self.genres)}," if self.genres else ""
        decision = "liked" if self.liked else "disliked"
        told = f"A user {history or 'has rated nothing yet'}. Then the user saw {title}{of} and {decision} it. "
        return told + _ASKED.format(title=title)

    def prompt(self, tokenizer: Any) -> str:
        """What the language model continues: a turn of the user and the beginning of the answer where the tokenizer
        has a chat template, else the same as plain text."""
        if getattr(tokenizer, "chat_template", None):
            turn = [{"role": "user", "content": self.told}]
            return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)) + _BEGUN
        return f"{self.told}\nExplanation: {_BEGUN}"

    @staticmethod
    def completed(text: str) -> str:
        """The whole text of what the model wrote after the prompt, on one line."""
        return " ".join(f"{_BEGUN} {one_line(text.strip())}".split())


def told_by_counts(decision: Decision, of_genres: Sequence[tuple[str, int, int]], of_item: tuple[int, int]) -> str:
    """A text of the same four points without a language model: the control for what it writes.

    of_genres: of each genre of the item how many films of it the user liked before and how many rated; of_item: likes
    and ratings that the item had before.
    """
    liked, rated = sum(one for _, one in decision.history), len(decision.history)
    parts = [f"This user liked {liked} of the last {rated} films."]
    known = [f"{genre} {likes} of {ratings}" for genre, likes, ratings in of_genres if ratings]
    parts.append(
        f"Of the same genres the user liked {', '.join(known)}." if known else "Its genres are new to the user."
    )
    of = f" is {_series(decision.genres)} and" if decision.genres else ""
    parts.append(f'"{one_line(decision.title)}"{of} was liked by {of_item[0]} of {of_item[1]} others.')
    return " ".join([*parts, decision.said])


def item_text(title: str, genres: Sequence[str]) -> str:
    """What an item is in words: its title and its genres."""
    return one_line(title) + (f": {', '.join(genres)}" if genres else "")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{one_line(name)}"' for name in names)


def _series(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
