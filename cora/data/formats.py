"""The forms of interactions that can be read, one module each.

A format is a module with FORMS, what it reads in words; `reads(path) -> bool`, which looks at names and, where those
are anybody's, at a first line; and `read(path) -> Source`, the rows as the files hold them.
"""

from pathlib import Path
from types import ModuleType

from cora.data import amazon, movielens, recbole, tables
from cora.data.problems import listed, problem
from cora.data.rows import Source

# Of a file the first one that reads it counts: MovieLens' ratings.csv and Amazon's reviews are tables without titles.
FORMATS: dict[str, ModuleType] = {
    "RecBole": recbole,
    "MovieLens": movielens,
    "Amazon": amazon,
    "tables": tables,
}


def read(path: Path) -> Source:
    """What the one format that reads `path` finds there. Raises ValueError if none does or, of a folder, several."""
    found = [name for name, form in FORMATS.items() if form.reads(path)]
    if path.is_dir() and len(found) > 1:
        raise problem(path, f"expected files of one form, found those of {' and '.join(found)}")
    if found:
        source: Source = FORMATS[found[0]].read(path)
        return source
    forms = "; ".join(form.FORMS for form in FORMATS.values())
    if path.is_dir():
        names = listed(sorted(file.name for file in path.iterdir()))
        raise problem(path, f"nothing to read: found {names}, expected {forms}")
    raise problem(path, f"expected a .inter, .parquet, .csv, .tsv or .jsonl file, got {path.suffix!r}")
