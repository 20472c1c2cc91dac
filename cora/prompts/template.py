"""The text of a prompt: a user's history and one item in a template."""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

DEFAULT_TEXT = (
    "#Question: A user has given high ratings to the following movies: {history}. Leverage the information to predict "
    'whether the user would enjoy the movie titled {title}? Answer with "Yes" or "No". \n#Answer:'
)


Piece = tuple[str, bool]
_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True)
class PromptTemplate:
    """The prompt: `text` with the field {history} replaced by the quoted titles, joined with ", ", and {title} by the
    quoted title of the item asked about. `no_history` stands where the history is empty.

    The default text is CoRA's (Liu et al., AAAI 2025).
    Raises ValueError if `text` does not hold each of the two fields once, or holds another.
    """

    text: str = DEFAULT_TEXT
    no_history: str = "none so far"

    def __post_init__(self) -> None:
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(self.text) if field is not None]
        except ValueError as error:
            raise ValueError(f"text: not a template ({error}): {self.text!r}") from None
        if sorted(fields) != ["history", "title"]:
            raise ValueError(f"text: expected the fields {{history}} and {{title}} once each, got {fields}")

    def render(self, history: Sequence[str], title: str) -> str:
        """The prompt for titles the user liked, oldest first, and the title asked about, each as `one_line` of it."""
        return "".join(text for text, _ in self.pieces(history, title))

    @property
    def title_at(self) -> int:
        """Which of the `pieces` is the title asked about."""
        at = -1
        for _, field, _, _ in string.Formatter().parse(self.text):
            at += 1 if field is None else 2
            if field == "title":
                break
        return at

    def pieces(self, history: Sequence[str], title: str) -> list[Piece]:
        """The prompt in its order, and of each piece whether it is made of titles, not of the template."""
        liked = ", ".join([f'"{one_line(name)}"' for name in history])
        values = {"title": f'"{one_line(title)}"', "history": liked or self.no_history}
        found = []
        for text, field, spec, conversion in string.Formatter().parse(self.text):
            found.append((text, False))
            if field is not None:
                value = string.Formatter().convert_field(values[field], conversion)
                found.append((format(value, spec or ""), field == "title" or bool(liked)))
        return found


def one_line(title: str) -> str:
    """The title with one blank for each run of control characters and line ends (tabs, \\r, \\n, U+0085, U+2028 …) and
    the blanks around it, and none at its beginning or end for them. All else is as it was."""
    if title.isprintable():
        return title
    lines = _BREAKS.split(title)
    return title if len(lines) == 1 else " ".join(line.strip() for line in lines if line.strip())
