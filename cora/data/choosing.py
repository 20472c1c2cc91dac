"""Which columns of a file are used, and which of them holds the titles."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cora.data.problems import listed, problem

EVENTS = ("user_id", "item_id", "timestamp")
_VALUES = ("rating", "label")
_GENRES = ("genres", "genre", "class")  # the last is what RecBole calls them in MovieLens-100k
# What items are; and what has a title or a name beside an item, and is none.
_ITEMS = frozenset("item product movie film book song track music game app article news video".split())
_OTHERS = frozenset(
    "album artist author brand category city class country creator director genre group list publisher seller series "
    "shop singer store sub subtitle tag type user".split()
)


def event_columns(file: Path, found: Sequence[str], titled: bool) -> dict[str, str]:
    """Our name → the file's for user_id, item_id, timestamp, rating and label as there are, and with `titled` title.

    Raises ValueError, naming the file, for a column that is missing or there twice, or titles that may be in several.
    """
    names = {name: name for name in (*EVENTS, *_VALUES) if name in found}
    missing = [name for name in EVENTS if name not in names]
    title = title_column(file, found) if titled else None
    if title is not None:
        names["title"] = title
    elif titled:
        missing.append("title")
    if not any(name in names for name in _VALUES):
        missing.append("rating or label")
    return checked(file, found, names, missing)


def item_columns(file: Path, found: Sequence[str]) -> dict[str, str]:
    """The same for a file of items: item_id, title, and release_year and genres, if there."""
    title = title_column(file, found)
    if "item_id" not in found or title is None:
        raise problem(file, f"expected the columns item_id and title (or movie_title, name ...), found {listed(found)}")
    more = {"release_year": "release_year"} if "release_year" in found else {}
    if genres := [name for name in _GENRES if name in found]:
        more["genres"] = genres[0]
    return checked(file, found, {"item_id": "item_id", "title": title} | more, [])


def checked(file: Path, found: Sequence[str], names: Mapping[str, str], missing: Sequence[str]) -> dict[str, str]:
    """The names, if nothing is missing and none of them is there twice."""
    if missing:
        raise problem(file, f"missing column {', '.join(missing)}; found {listed(found)}")
    twice = [name for name in names.values() if list(found).count(name) > 1]
    if twice:
        raise problem(file, f"expected one column {twice[0]}, got {list(found).count(twice[0])}; found {listed(found)}")
    return dict(names)


def title_column(file: Path, found: Sequence[str]) -> str | None:
    """The column that holds the titles, None if no name is like it.

    In this order: title; a title or a name of an item (item_title, movie_title, product_name …); name; a title or a
    name of what is not known to be beside the item, as a brand or an author is. Of two in one place none is chosen:
    ValueError.
    """
    ranks: dict[int, list[str]] = {}
    for column in dict.fromkeys(found):
        rank = _rank(column)
        if rank is not None:
            ranks.setdefault(rank, []).append(column)
    if not ranks:
        return None
    best = ranks[min(ranks)]
    if len(best) > 1:
        raise problem(file, f"the titles may be in any of the columns {listed(best)}; rename the right one to title")
    return best[0]


def _rank(column: str) -> int | None:
    of, _, what = column.rpartition("_")
    if what not in ("title", "name") or not set(of.split("_")).isdisjoint(_OTHERS):
        return None
    if not of:
        return {"title": 0, "name": 3}[what] if column == what else None
    return {"title": 1, "name": 2}[what] if of in _ITEMS else {"title": 4, "name": 5}[what]
