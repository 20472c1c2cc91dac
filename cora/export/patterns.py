"""rank_pattern and alpha_pattern of a PEFT adapter: regular expressions from a file, so of a kind that ends soon."""

import re
from typing import Any

_LENGTH = 300
_REPEATS = 3
_PATTERNS = 10_000


class Patterns:
    """The numbers of a field by pattern; the first pattern that fits the end of a name holds, as in PEFT.

    Raises ValueError naming the field for anything but patterns with numbers, and for a pattern that could take long to
    match: a repeated group, or many repeats.
    """

    def __init__(self, field: str, values: Any) -> None:
        if values is not None and not (isinstance(values, dict) and len(values) <= _PATTERNS):
            raise ValueError(f"{field}: expected at most {_PATTERNS:,} patterns with numbers, got {values!r:.80}")
        self._values = [(_compiled(field, one), number(field, value)) for one, value in (values or {}).items()]

    def value(self, name: str, default: float) -> float:
        """The number of this linear."""
        return next((value for pattern, value in self._values if pattern.match(name)), default)


def number(field: str, value: Any) -> float:
    """The value, which must be a finite number above 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ValueError(f"{field}: expected a number above 0, got {value!r:.80}")
    return value


def _compiled(field: str, pattern: str) -> re.Pattern[str]:
    repeats = re.findall(r"[*+?{]", pattern)
    if len(pattern) > _LENGTH or len(repeats) > _REPEATS or re.search(r"\)[*+?{]", pattern):
        raise ValueError(f"{field}: {pattern[:80]!r} is more of a regular expression than is served")
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except re.error as error:
        raise ValueError(f"{field}: {pattern[:80]!r} is no regular expression ({error})") from None
