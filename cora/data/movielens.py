"""MovieLens as GroupLens gives it out: 100k (u.data), 1M and 10M (ratings.dat), later releases (ratings.csv)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cora.data.choosing import checked
from cora.data.memory import refuse_too_large
from cora.data.problems import listed, problem, shown_path
from cora.data.rows import Source
from cora.data.text import Choose, is_utf8, read_separated

FORMS = "MovieLens' files"
_ITEMS = {"u.data": "u.item", "ratings.dat": "movies.dat", "ratings.csv": "movies.csv"}
_RATINGS = {"user_id": "userId", "item_id": "movieId", "rating": "rating", "timestamp": "timestamp"}
_MOVIES = {"item_id": "movieId", "title": "title"}
_U_ITEM = 24  # id, title, two dates, an address, and a 0 or 1 for each of 19 genres


def reads(path: Path) -> bool:
    """A folder with a file of ratings of such a name, or that file; ratings.csv only with movies.csv beside it."""
    if path.is_dir():
        return any(reads(path / name) for name in _ITEMS)
    if path.name not in _ITEMS or not path.is_file():
        return False
    return path.suffix != ".csv" or path.with_name(_ITEMS[path.name]).is_file()


def read(path: Path) -> Source:
    """The ratings and, from the file beside them, the titles.

    The columns of `.dat`, of u.data and u.item are known by their places, those of `.csv` by their names. movies.dat
    and u.item are UTF-8 or, where they are not that, Latin-1: the releases differ.
    """
    if path.is_dir():
        found = [path / name for name in _ITEMS if reads(path / name)]
        if len(found) > 1:
            raise problem(path, f"expected the ratings once, found {listed(file.name for file in found)}")
        path = found[0]
    items = path.with_name(_ITEMS[path.name])
    if not items.is_file():
        raise FileNotFoundError(f"{shown_path(path)}: the titles are missing, expected them in {items.name} beside it")
    refuse_too_large([path])
    if path.suffix == ".csv":
        ratings = read_separated(path, _chosen(_RATINGS), ",", quoted=True)
        return Source(ratings, ("",), read_separated(items, _movies, ",", quoted=True))
    separator = "\t" if path.name == "u.data" else "::"
    ratings = read_separated(path, _chosen(_RATINGS), separator, quoted=False, header=list(_RATINGS.values()))
    header = ["movieId", "title", "genres"]
    if items.name == "u.item":  # whose genres are 19 columns of their own
        separator, header = "|", [*header[:2], *map(str, range(2, _U_ITEM))]
    encoding = "utf-8" if is_utf8(items) else "latin-1"
    return Source(ratings, ("",), read_separated(items, _movies, separator, False, header, encoding))


def _movies(file: Path, found: Sequence[str]) -> Mapping[str, str]:
    """The columns of the movies; the genres too, where there are any."""
    return _chosen(_MOVIES | {name: name for name in ("genres",) if name in found})(file, found)


def _chosen(wanted: Mapping[str, str]) -> Choose:
    return lambda file, found: checked(file, found, wanted, [name for name in wanted.values() if name not in found])
