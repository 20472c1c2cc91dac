"""The text of a prompt: a user's history and one item in a template."""

import string
from collections.abc import Sequence
from dataclasses import dataclass

DEFAULT_TEXT = (
    "#Question: A user has given high ratings to the following movies: {history}. Leverage the information to predict "
    'whether the user would enjoy the movie titled {title}? Answer with "Yes" or "No". \n#Answer:'
)


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
        """The prompt for titles the user liked, oldest first, and the title asked about."""
        liked = ", ".join(f'"{name}"' for name in history) or self.no_history
        return self.text.format(history=liked, title=f'"{title}"')
